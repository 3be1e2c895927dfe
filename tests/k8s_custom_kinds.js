// Validates documents of kinds that are not built into Kubernetes, strictly: a field that the schema does not know
// is a fault. `node k8s_custom_kinds.js FOLDER`: the folder has the npm packages, standard input the documents.
const path = require('node:path');
const fs = require('node:fs');
const { createRequire } = require('node:module');
const load = createRequire(path.resolve(process.argv[2], 'package.json'));

// The API server removes unknown fields, so the schemas allow them.
function close(schema) {
  if (Array.isArray(schema)) return schema.forEach(close);
  if (schema === null || typeof schema !== 'object') return;
  if (schema.properties && schema.additionalProperties === undefined) schema.additionalProperties = false;
  Object.values(schema).forEach(close);
}

const Ajv = load('ajv').default;
const { addSchema } = Ajv.prototype;
Ajv.prototype.addSchema = function (schema, ...rest) {
  // The schema of schemas stays open.
  if (!String(schema.$id).includes('json-schema.org')) close(schema);
  return addSchema.call(this, schema, ...rest);
};

const operator = '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1';
const kinds = {
  ...load('@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/HTTPRoute'),
  ...load(`${operator}/ServiceMonitor`),
  ...load(`${operator}/PrometheusRule`),
};
for (const document of JSON.parse(fs.readFileSync(0, 'utf8'))) {
  try {
    new kinds[document.kind](document).validate();
  } catch (error) {
    console.log(`${document.kind} ${document.metadata.name}: ${error.message}`);
  }
}
