"""Renders the Kubernetes manifests in k8s/, and gives what a pod of them would see: its files and variables."""

import base64
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
K8S = ROOT / "k8s"


def render(folder):
    tool = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    done = subprocess.run([*tool, str(folder)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{folder}: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def adapted(overlay, components=(), **changes):
    """Renders a kustomization of a user: an overlay, components, and what else the user changes."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=K8S, prefix=".check-"))
    try:
        (folder / "kustomization.yaml").write_text(yaml.safe_dump({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": [f"../overlays/{overlay}"],
            "components": [f"../components/{name}" for name in components], **changes}))
        return render(folder)
    finally:
        shutil.rmtree(folder)


def one(documents, kind, name=None):
    """Returns the document of that kind whose name ends with `name`."""
    found = [d for d in documents if d["kind"] == kind and (name is None or d["metadata"]["name"].endswith(name))]
    assert len(found) == 1, f"{len(found)} documents of kind {kind}: {[d['metadata']['name'] for d in found]}"
    return found[0]


def megabytes(text):
    """Returns mebibytes of a quantity such as 768Mi or 1Gi."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


class Pod:
    """What the first container of a workload sees when the kubelet starts it.

    `secrets` are the keys and values of each Secret by its name."""

    def __init__(self, documents, workload, secrets, name="pod-0"):
        self.documents, self.secrets, self.name = documents, dict(secrets), name
        self.spec = workload["spec"]["template"]["spec"]
        self.container = self.spec["containers"][0]
        self.volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        for document in documents:
            if document["kind"] == "Secret":
                keys = {key: base64.b64decode(text).decode() for key, text in document["data"].items()}
                self.secrets[document["metadata"]["name"]] = keys

    def config_map(self, name):
        return next(d["data"] for d in self.documents if d["kind"] == "ConfigMap" and d["metadata"]["name"] == name)

    def variables(self):
        """Returns the variables. A value may use variables that stand above it, as `$(NAME)`, and no others."""
        values, generated = {}, {}
        for variable in self.container.get("env", []):
            values[variable["name"]] = self.value(variable, values)
        for source in self.container.get("envFrom", []):
            generated |= self.config_map(source["configMapRef"]["name"])
        return generated | values

    def value(self, variable, values):
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            return self.secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
        if "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "metadata.name"
            return self.name
        return self.expand(variable["value"], values)

    @staticmethod
    def expand(text, values):
        return re.sub(r"\$\((\w+)\)", lambda found: values.get(found[1], found[0]), text)

    def arguments(self):
        values = self.variables()
        return [self.expand(argument, values) for argument in self.container.get("args", [])]

    def write_files(self, root):
        """Writes the files of all mounts below the folder `root`."""
        for mount in self.container["volumeMounts"]:
            folder = pathlib.Path(root + mount["mountPath"])
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in self.files(self.volumes.get(mount["name"], {})).items():
                (folder / name).write_text(text)

    def files(self, volume):
        if "configMap" in volume:
            return self.config_map(volume["configMap"]["name"])
        if "secret" not in volume:
            return {}
        keys = self.secrets.get(volume["secret"]["secretName"])
        if keys is None:
            assert volume["secret"].get("optional"), f"there is no Secret {volume['secret']['secretName']}"
            return {}
        items = volume["secret"].get("items")
        return {item["path"]: keys[item["key"]] for item in items} if items else keys


def image_variables():
    """Returns the variables that the image of the relay sets."""
    return dict(re.findall(r"(SWITCHBOARD__\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))


class RelayPod(Pod):
    """The pod of the relay, with what the program needs to run on this machine: its files are below `root`."""

    def __init__(self, documents, secrets, root):
        super().__init__(documents, one(documents, "Deployment"), secrets)
        self.root = root
        self.write_files(root)

    def command(self, binary, verb):
        assert self.arguments()[0] == "serve", "the pod runs `switchboard serve`"
        return [binary, verb, *map(self.here, self.arguments()[1:])]

    def environment(self):
        variables = image_variables() | self.variables()
        return {"PATH": os.environ["PATH"], **{name: self.here(text) for name, text in variables.items()}}

    def here(self, text):
        return self.root + text if text.startswith("/") else text
