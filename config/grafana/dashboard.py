#!/usr/bin/env python3
"""The Grafana dashboard: prints dashboards/switchboard.json.

    config/grafana/dashboard.py > config/grafana/dashboards/switchboard.json

`tests/panels` compares the file with what this prints, and asks a real Prometheus every query.
"""

import json
import urllib.parse

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Outside Kubernetes no series has a namespace or a pod; the value for "All" matches that, too.
SELECTED = 'job=~"$job", namespace=~"$namespace", pod=~"$pod", instance=~"$instance"'
NODE = "job, namespace, pod, instance"
BY_NODE = "{{pod}} {{instance}}"
GREEN = [("green", None)]
NEAR_LIMIT = [("green", None), ("orange", 0.8), ("red", 0.95)]
DROPS = 'switchboard_messages_dropped_total{reason!~"offline|rate_limited|too_large"}'


def selected(expr):
    """Puts the selector of the variables into every metric: `name`, `name{a="b"}`."""
    out, rest = "", expr
    while rest:
        for begin in ("switchboard_", "instance:", "instance_sign:", "scrape_duration", "up"):
            if rest.startswith(begin) and not (out and (out[-1].isalnum() or out[-1] in "_:$")):
                end = next((i for i, c in enumerate(rest) if not (c.isalnum() or c in "_:")), len(rest))
                name, rest = rest[:end], rest[end:]
                matchers = ""
                if rest.startswith("{"):
                    matchers, rest = rest[1:].split("}", 1)
                out += f"{name}{{{SELECTED}{', ' if matchers else ''}{matchers}}}"
                break
        else:
            out, rest = out + rest[0], rest[1:]
    return out


def rate(metric, by=""):
    total = f"rate({metric}[$__rate_interval])"
    return f"sum{f' by ({by})' if by else ''} ({total})"


def quantile(q, metric, by=""):
    grouping = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {rate(metric + '_bucket', grouping)})"


def target(number, expr, legend, **more):
    more = {"instant": False, "range": True, **more}
    return {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": selected(expr), "legendFormat": legend, **more}


def steps(thresholds):
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in thresholds]}


def panel(kind, title, description, unit, targets, width, height, *, thresholds=GREEN, overrides=(), options=None, **defaults):
    """A panel without its place. `targets` are pairs of an expression and a legend, or whole targets."""
    found = [one if isinstance(one, dict) else target(i, *one) for i, one in enumerate(targets)]
    defaults = {"unit": unit, "thresholds": steps(thresholds), "mappings": [], **defaults}
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": found,
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": options or {},
    }


def graph(title, description, unit, *targets, width=8, height=8, stack=False, least=0, **more):
    style = {
        "drawStyle": "line",
        "lineWidth": 0 if stack else 1,
        "fillOpacity": 50 if stack else 10,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal", "group": "outcome"} if stack else {"mode": "none", "group": "A"},
    }
    legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]}
    options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if least is not None:
        more["min"] = least
    more["color"] = {"mode": "palette-classic"}
    return panel("timeseries", title, description, unit, targets, width, height, options=options, custom=style, **more)


def number(title, description, unit, expr, thresholds=GREEN, **more):
    options = {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    more["color"] = {"mode": "thresholds"}
    return panel("stat", title, description, unit, [(expr, title.lower())], 3, 4, thresholds=thresholds, options=options, **more)


def override(name, **properties):
    found = [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": "byName", "options": name}, "properties": found}


def colored(name, color):
    return override(name, color={"mode": "fixed", "fixedColor": color})


def dashed(name):
    return override(name, custom__lineStyle={"fill": "dash", "dash": [8, 8]}, custom__fillOpacity=0)


# The columns of the table of nodes: a name, a query with one value for each node, and the format. A label that a
# query adds is a column of its own.
def columns():
    worst = f"topk by ({NODE}) (1, "
    delivered = f"{rate('switchboard_messages_delivered_total', NODE)} + {rate('switchboard_cluster_sent_total', NODE)}"
    near = {"unit": "percentunit", "thresholds": steps(NEAR_LIMIT), "custom__cellOptions": {"type": "color-text"}}
    good = [("red", None), ("orange", 0.9), ("green", 0.99)]
    refused = rate('switchboard_handshakes_rejected_total{reason!="draining"}', f"{NODE}, reason")
    return [
        ("trouble", f"{worst}instance_sign:switchboard_trouble:ratio) > 0",
         {**near, "thresholds": steps([("green", None), ("orange", 0.01), ("red", 0.1)])}),
        ("users of limit", f"sum by ({NODE}) (instance:switchboard_connections:utilization)", near),
        ("delivered", f"({delivered}) / ({delivered} + {rate(DROPS, NODE)})", {**near, "thresholds": steps(good)}),
        ("dropped", f'label_replace({worst}{rate(DROPS, f"{NODE}, reason")}) > 0, "dropped_as", "$1", "reason", "(.*)")',
         {"unit": "cps"}),
        ("refused", f'label_replace({worst}{refused}) > 0, "refused_as", "$1", "reason", "(.*)")', {"unit": "cps"}),
        ("p99", quantile(0.99, "switchboard_delivery_seconds", NODE), {"unit": "s"}),
        ("link", f"sum by ({NODE}) (switchboard_cluster_up)", {"unit": "bool_yes_no"}),
        ("drains", f"sum by ({NODE}) (switchboard_draining)", {"unit": "bool_yes_no"}),
        ("build", f"count by ({NODE}, version, revision) (switchboard_build_info)", {}),
    ]


def table_of_nodes():
    found = columns()
    targets = [target(i, expr, name, format="table", instant=True, range=False) for i, (name, expr, _) in enumerate(found)]
    table = panel(
        "table", "Nodes", "The worst first. Trouble is the share by which the worst sign of the node is bad: "
        "it is down, loses messages, refuses users, is full, has no link, is short of CPU or memory, or drains.",
        "short", targets, 24, 8, options={"showHeader": True, "cellHeight": "sm"},
        overrides=[override(name, **style) for name, _, style in found],
    )
    values = {f"Value #{chr(ord('A') + i)}": name for i, (name, _, _) in enumerate(found)}
    # The labels that both queries of a pair have are joined with a number behind the name.
    hidden = ["Time", "__name__", "job", "reason"] + [f"{name} {i}" for i in range(1, 10) for name in ("Time", "__name__", "job", "namespace", "pod", "reason")]
    beside = {"trouble": "sign", "dropped": "dropped_as", "refused": "refused_as"}
    order = ["namespace", "pod", "instance"]
    for name, _, _ in found:
        order += [name, beside[name]] if name in beside else [name]
    table["transformations"] = [
        {"id": "joinByField", "options": {"byField": "instance", "mode": "outer"}},
        {"id": "organize", "options": {
            "excludeByName": dict.fromkeys([*hidden, "Value #I"], True),
            "renameByName": values,
            "indexByName": {name: i for i, name in enumerate(order)},
        }},
        {"id": "sortBy", "options": {"sort": [{"field": "trouble", "desc": True}]}},
    ]
    return table


def ledger():
    received = f"{rate('switchboard_messages_received_total')} + {rate('switchboard_cluster_received_total')}"
    line = override("received", custom__stacking={"mode": "none", "group": "received"}, custom__lineWidth=3,
                    custom__fillOpacity=0, color={"mode": "fixed", "fixedColor": "text"})
    return graph(
        "Where every message went", "The line shows the messages received from clients and from other nodes. The "
        "areas show their outcomes: delivered, sent to other nodes, change of the messages that wait, dropped by "
        "reason. The areas must reach the line. A gap means that messages are not accounted for.", "cps",
        (received, "received"), (rate("switchboard_messages_delivered_total"), "delivered"),
        (rate("switchboard_cluster_sent_total"), "sent to other nodes"),
        ("sum (deriv(switchboard_mailbox_messages[$__rate_interval]))", "waiting (change)"),
        (rate("switchboard_messages_dropped_total", "reason") + " > 0", "{{reason}}"),
        width=24, height=11, stack=True, least=None,
        overrides=[line, colored("delivered", "green"), colored("sent to other nodes", "blue"),
                   colored("waiting (change)", "yellow"), colored("internal", "dark-red")],
    )


def by_node(title, description, unit, expr, **more):
    return graph(title, description, unit, (expr, BY_NODE), **more)


def by_reason(title, description, metric, **more):
    """A rate by node and reason, without the series that are zero."""
    return graph(title, description, "cps", (f"{rate(metric, f'{NODE}, reason')} > 0", f"{BY_NODE} {{{{reason}}}}"), **more)


def quantiles(title, description, metric):
    names = {0.5: "p50", 0.9: "p90", 0.99: "p99", 0.999: "p99.9"}
    # Exemplars are the same for each quantile.
    targets = [target(i, quantile(q, metric), name, exemplar=q == 0.99) for i, (q, name) in enumerate(names.items())]
    return graph(title, description, "s", *targets, width=12, least=None)


def rows():
    sum_of = lambda metric: f"sum ({metric})"
    utilization = lambda name: f"max (instance:switchboard_{name}:utilization)"
    overview = [
        table_of_nodes(),
        number("Instances up", "Instances that answered the last scrape.", "short", "sum (up)", [("red", None), ("green", 1)]),
        number("Users", "Connected users at the time of the scrape.", "short", sum_of("switchboard_connections")),
        number("Received", "Messages from clients that the relay decoded.", "cps", rate("switchboard_messages_received_total")),
        number("Least delivered", "The share of messages that the worst instance delivered, of those to connected users.", "percentunit",
               "1 - max (instance_sign:switchboard_trouble:ratio{sign=\"loses messages\"})", [("red", None), ("orange", 0.9), ("green", 0.99)], max=1),
        number("Delivery p99", "Time from reading a message's frame to flushing it to the recipient, on the slowest instance.", "s",
               f"max ({quantile(0.99, 'switchboard_delivery_seconds', NODE)})", [("green", None), ("orange", 0.1), ("red", 0.25)]),
        number("Ledger gap", "The largest number of messages of an instance that were received and are not accounted for. Above 0 for a "
               "moment: the relay handles a message. Above 0 for minutes: a message is lost. It must not fall below 0.", "short",
               "max (instance:switchboard_ledger:gap)", [("red", None), ("green", 0), ("orange", 1)]),
        number("Draining", "Instances that drain.", "short", sum_of("switchboard_draining"), [("green", None), ("orange", 1)]),
        number("Builds", "Different builds that run. More than one: a rollout is not complete.", "short",
               "count (count by (version, revision) (switchboard_build_info))", [("green", None), ("orange", 2)]),
    ]
    yield "Overview", False, overview
    yield "Connections", False, [
        by_node("Users", "Connected users.", "short", f"sum by ({NODE}) (switchboard_connections)", width=12),
        graph("Connections opened and closed", "Connections opened and closed.", "cps",
              (rate("switchboard_connections_opened_total"), "opened"), (rate("switchboard_connections_closed_total"), "closed"), width=12),
        graph("Closed, by initiator and code", "config/prometheus/README.md explains the codes.", "cps",
              (f"{rate('switchboard_connections_closed_total', f'{NODE}, initiator, code')} > 0", f"{BY_NODE} {{{{initiator}}}} {{{{code}}}}"), width=16),
        by_node("Opened, neither closed nor open", "Must be 0; any other value means that a connection was counted wrongly.", "short",
                "switchboard_connections_opened_total - sum without (initiator, code) (switchboard_connections_closed_total) - switchboard_connections",
                least=None, thresholds=[("green", None), ("red", 1)]),
    ]
    received = f"{rate('switchboard_messages_received_total', NODE)} + {rate('switchboard_cluster_received_total', NODE)}"
    yield "Messages and outcomes", False, [
        ledger(),
        by_node("Ledger gap", "received + cluster_received - delivered - dropped - mailbox - cluster_sent, at each scrape.", "short",
                "instance:switchboard_ledger:gap", width=12, least=None, thresholds=[("green", None), ("red", 1)]),
        graph("Dropped, share of received", "Share of received messages that were dropped, by node and reason.", "percentunit",
              (f"{rate('switchboard_messages_dropped_total', f'{NODE}, reason')} / on ({NODE}) group_left () ({received}) > 0", f"{BY_NODE} {{{{reason}}}}"), width=12),
        by_node("Received", "Messages from clients that the relay decoded.", "cps", rate("switchboard_messages_received_total", NODE), width=12),
        graph("Bytes", "Bytes read from and written to users' sockets after the handshake.", "Bps",
              (rate("switchboard_socket_read_bytes_total", NODE), f"{BY_NODE} read"), (rate("switchboard_socket_written_bytes_total", NODE), f"{BY_NODE} written"), width=12),
    ]
    delivery = "Time from reading a message's frame to flushing it to the recipient."
    heatmap = panel("heatmap", "Delivery, distribution", "Number of messages by delivery time.", "s",
                    [target(0, "sum by (le) (increase(switchboard_delivery_seconds_bucket[$__rate_interval]))", "{{le}}", format="heatmap")], 12, 8,
                    options={"calculate": False, "cellGap": 0, "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64}, "yAxis": {"unit": "s"},
                             "legend": {"show": True}, "tooltip": {"mode": "single", "yHistogram": False}, "filterValues": {"le": 1e-09}})
    yield "Latency", True, [
        quantiles("Delivery", delivery, "switchboard_delivery_seconds"),
        quantiles("Wait in the mailbox", "Time from reading a message's frame to taking it from the mailbox. It is part of the delivery time.", "switchboard_mailbox_wait_seconds"),
        heatmap,
        by_node("Delivery p99", delivery, "s", quantile(0.99, "switchboard_delivery_seconds", NODE), width=12),
    ]
    yield "Mailboxes", True, [
        by_node("Messages waiting", "Messages in mailboxes and write buffers.", "short", f"sum by ({NODE}) (switchboard_mailbox_messages)"),
        graph("Bytes waiting", "Bytes that wait, bytes that mailboxes have reserved for them, and the limit of all reservations together (mailbox.total_bytes).",
              "bytes", ("switchboard_mailbox_bytes", f"{BY_NODE} waiting"), ("switchboard_mailbox_reserved_bytes", f"{BY_NODE} reserved"),
              ("min (switchboard_mailbox_limit_bytes)", "limit"), overrides=[dashed("limit")]),
        graph("Outcomes unread", "Bytes that users have reserved for outcomes that they have not read, and the limit of all of them together (limits.outcomes_bytes).",
              "bytes", ("switchboard_outcome_bytes", f"{BY_NODE} unread"), ("min (switchboard_outcome_limit_bytes)", "limit"), overrides=[dashed("limit")]),
        by_reason("Dropped: the recipient is too slow or gone", "queue_full: the mailbox was full, or mailbox.total_bytes was used up. disconnected: the recipient left before the message was flushed.",
                  'switchboard_messages_dropped_total{reason=~"queue_full|disconnected|expired"}'),
    ]
    refused = 'switchboard_messages_dropped_total{reason=~"too_large|rate_limited"}'
    yield "Limits and refusals", True, [
        graph("Share of limits used", "Users of limits.connections, file descriptors of RLIMIT_NOFILE, mailbox memory of mailbox.total_bytes, memory of the cgroup, "
              "and HTTP connections of limits.handshakes, on the fullest instance.", "percentunit",
              (utilization("connections"), "users"), (utilization("fds"), "files"), (utilization("mailbox"), "mailboxes"),
              ("max (switchboard_http_connections / switchboard_http_connections_limit)", "HTTP connections"), width=12, thresholds=NEAR_LIMIT, max=1),
        graph("Handshakes refused", "Refused handshakes, by node and reason. asked: a page asked at /handshake why it was refused.", "cps",
              (f"{rate('switchboard_handshakes_rejected_total', f'{NODE}, reason')} > 0", f"{BY_NODE} {{{{reason}}}}"),
              (f"{rate('switchboard_handshake_checks_rejected_total', f'{NODE}, reason')} > 0", f"{BY_NODE} {{{{reason}}}} asked"), width=12),
        graph("Users and their limit", "Above the limit the relay answers upgrades with 503.", "short",
              (sum_of("switchboard_connections"), "users"), (sum_of("switchboard_connections_limit"), "limit"), overrides=[dashed("limit")]),
        graph("Messages refused", "Messages above limits.message_bytes or above the sender's rate. Messages that could not be decoded are shown too; they are not in the ledger.",
              "cps", (f"{rate(refused, f'{NODE}, reason')} > 0", f"{BY_NODE} {{{{reason}}}}"),
              (f"{rate('switchboard_bad_messages_total', NODE)} > 0", f"{BY_NODE} not decoded")),
        graph("Connections kept waiting or closed", "Connections that waited for limits.accept_rate, and connections that were closed before their upgrade to make room.",
              "cps", (rate("switchboard_accepts_deferred_total", NODE), f"{BY_NODE} deferred"), (rate("switchboard_http_evicted_total", NODE), f"{BY_NODE} evicted")),
        graph("Faults", "Connections that could not be accepted, sessions that panicked, and messages that the relay lost while it handled them.", "cps",
              (rate("switchboard_accept_errors_total", NODE), f"{BY_NODE} accept"), (rate("switchboard_session_panics_total", NODE), f"{BY_NODE} panics"),
              (rate('switchboard_messages_dropped_total{reason="internal"}', NODE), f"{BY_NODE} internal"), width=24),
    ]
    draining = f"on ({NODE}) switchboard_draining == 1"
    yield "Drain", True, [
        by_node("Users still connected", "Connected users on instances that drain.", "short", f"switchboard_connections and {draining}"),
        by_node("Time left", "Time until the drain closes all remaining connections.", "s",
                f"switchboard_drain_deadline_timestamp_seconds - time() and {draining}", least=None, thresholds=[("red", None), ("green", 5)]),
        graph("Closed by the drain, and messages dropped", "Connections closed with 1012, and messages that were still queued at the end of the drain.", "cps",
              (rate('switchboard_connections_closed_total{initiator="server", code="1012"}', NODE), f"{BY_NODE} closed"),
              (rate('switchboard_messages_dropped_total{reason="draining"}', NODE), f"{BY_NODE} dropped")),
    ]
    yield "Cluster", True, [
        by_node("Link up", "1 while a node reaches NATS. Without NATS, users of the node can reach only each other.", "short", "switchboard_cluster_up"),
        graph("Messages between nodes", "Messages to other nodes and from other nodes.", "cps",
              (rate("switchboard_cluster_sent_total", NODE), f"{BY_NODE} sent"), (rate("switchboard_cluster_received_total", NODE), f"{BY_NODE} received")),
        graph("Lost between nodes", "Messages sent minus messages received, over the selected instances. The value moves around 0, because messages can be on their way at a scrape.",
              "short", ("sum by (job, namespace) (increase(switchboard_cluster_sent_total[$__rate_interval])) - sum by (job, namespace) (increase(switchboard_cluster_received_total[$__rate_interval]))", "{{job}} {{namespace}}"), least=None),
        graph("Bytes between nodes", "Bytes of messages and of the answers to them.", "Bps", (rate("switchboard_cluster_bytes_total", f"{NODE}, direction"), f"{BY_NODE} {{{{direction}}}}")),
        graph("Round trip to NATS", "Time of a round trip, including the wait behind other messages.", "s",
              (quantile(0.5, "switchboard_cluster_round_trip_seconds"), "p50"), (quantile(0.99, "switchboard_cluster_round_trip_seconds"), "p99")),
        by_node("Reconnects", "Connections to NATS after the first one, since the start of the process.", "short", "switchboard_cluster_connects_total - 1"),
        by_node("Lease", "1 while the node holds its lease. Without it the node takes no messages of other nodes.", "short", "switchboard_cluster_lease", width=6),
        by_node("Ids left", "Ids that the node can give to new users without another lease. At 0 new users get 503.", "short", "switchboard_cluster_ids_left", width=6),
        graph("Table of ids", "registrations: ids of the users of this node. joins: users that wait for NATS to join. routes: remembered places of users on other nodes. "
              "blocks: blocks that have new ids.", "short", *[(f"switchboard_cluster_{name}", f"{BY_NODE} {name}") for name in ("registrations", "joins_waiting", "routes", "blocks")], width=6),
        graph("Waiting for other nodes", "messages: messages that wait to be published. outcomes: outcomes that other nodes have not sent yet. unknown: outcomes that did not come in time.",
              "short", (sum_of("switchboard_cluster_queue_messages"), "messages"), (sum_of("switchboard_cluster_outcomes_pending"), "outcomes"),
              (sum_of("increase(switchboard_cluster_outcomes_unknown_total[$__rate_interval])"), "unknown"), width=6),
        by_node("Bytes waiting for other nodes", "Bytes of the messages that wait to be published.", "bytes", "switchboard_cluster_queue_bytes", width=12),
        graph("Faults of the link", "overrun: NATS dropped messages because the node read too slowly. malformed: messages that could not be decoded. conflicts: users that lost their id to another user.",
              "cps", *[(rate(f"switchboard_cluster_{name}_total", NODE), f"{BY_NODE} {name}") for name in ("overrun", "malformed", "id_conflicts")], width=12),
    ]
    yield "Process", True, [
        by_node("CPU", "CPU cores in use.", "short", rate("switchboard_process_cpu_seconds_total", NODE)),
        by_node("Busy threads", "Share of the time that the threads that serve users work.", "percentunit", "instance:switchboard_workers:busy_ratio_rate5m", max=1),
        graph("Memory", "Resident memory of the process, and memory and limit of its cgroup.", "bytes", ("switchboard_process_resident_memory_bytes", f"{BY_NODE} resident"),
              ("switchboard_cgroup_memory_usage_bytes", f"{BY_NODE} cgroup"), ("min (switchboard_cgroup_memory_limit_bytes)", "limit"), overrides=[dashed("limit")]),
        by_node("Memory per user", "Resident memory divided by users. It falls towards the cost of one user as the number of users grows.", "bytes",
                "switchboard_process_resident_memory_bytes / (switchboard_connections > 0)"),
        by_node("File descriptors", "Open file descriptors.", "short", "switchboard_process_open_fds"),
        by_node("Uptime", "Time since the process started.", "s", "time() - switchboard_process_start_time_seconds"),
        by_node("Scrapes", "Duration of each scrape, measured by Prometheus.", "s", "scrape_duration_seconds"),
        by_node("Directory segments", "Segments of the user directory. Each has room for 1024 ids and is freed when its last user leaves.", "short", "switchboard_directory_segments"),
        graph("Certificates and keys", "Time since certificates and keys were last read without a fault, and time until a certificate expires.", "s",
              ("time() - switchboard_certificate_last_reload_success_timestamp_seconds", f"{BY_NODE} {{{{listener}}}} read"),
              ("switchboard_certificate_not_after_timestamp_seconds - time()", f"{BY_NODE} {{{{listener}}}} expires"),
              ("time() - switchboard_keys_last_refresh_success_timestamp_seconds", f"{BY_NODE} keys read"), least=None),
        graph("Spans", "Spans that the OTLP receiver accepted, and spans that were lost, by reason.", "cps",
              (rate("switchboard_trace_spans_exported_total", NODE), f"{BY_NODE} exported"), (f"{rate('switchboard_trace_spans_dropped_total', f'{NODE}, reason')} > 0", f"{BY_NODE} {{{{reason}}}}")),
    ]


def placed(panels, top):
    """Puts panels beside each other from the left, in lines, and returns the first free line."""
    x, y, height = 0, top, 0
    for one in panels:
        place = one["gridPos"]
        if x + place["w"] > 24:
            x, y, height = 0, y + height, 0
        place.update(x=x, y=y)
        x, height = x + place["w"], max(height, place["h"])
    return y + height


def all_panels():
    found, y = [], 0
    for title, collapsed, panels in rows():
        row = {"type": "row", "title": title, "collapsed": collapsed, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": []}
        y = placed(panels, y + 1)
        found.append(row)
        (row["panels"] if collapsed else found).extend(panels)
    inner = [one for row in found for one in (row, *row.get("panels", []))]
    for i, one in enumerate(inner, start=1):
        one["id"] = i
    return found


def choice(name, label, kind, query, **more):
    empty = {"refresh": 2 if kind == "query" else 1, "multi": False, "includeAll": False, "options": [], "hide": 0, "current": {}}
    return {"name": name, "label": label, "type": kind, "query": query, **empty, **more}


def label(name, title, chosen, **more):
    before = {"job": "", "namespace": 'job=~"$job"', "pod": 'job=~"$job", namespace=~"$namespace"',
              "instance": 'job=~"$job", namespace=~"$namespace", pod=~"$pod"'}[name]
    definition = f"label_values(switchboard_build_info{f'{{{before}}}' if before else ''}, {name})"
    query = {"query": definition, "refId": name}
    return choice(name, title, "query", query, datasource=SOURCE, definition=definition, sort=1, current=chosen, **more)


def variables():
    every = {"multi": True, "includeAll": True, "allValue": ".*"}
    chosen = {"selected": True, "text": "All", "value": "$__all"}
    return [
        choice("datasource", "Data source", "datasource", "prometheus"),
        label("job", "Job", {"selected": True, "text": "switchboard", "value": "switchboard"}),
        label("namespace", "Namespace", chosen, **every),
        label("pod", "Pod", chosen, **every),
        label("instance", "Instance", chosen, **every),
        choice("traces", "Traces", "datasource", "jaeger"),
        choice("repository", "Address of the repository", "textbox", ""),
    ]


def links():
    search = {"refId": "A", "queryType": "search", "service": "switchboard"}
    pane = {"datasource": "${traces}", "queries": [search], "range": {"from": "${__from}", "to": "${__to}"}}
    explore = urllib.parse.quote(json.dumps({"a": pane}), safe="${}")
    link = {"type": "link", "asDropdown": False, "targetBlank": True, "icon": "external link", "tags": []}
    return [
        {"title": "Runbooks", "url": "${repository}/config/prometheus/README.md#runbooks", **link},
        {"title": "Traces", "url": f"/explore?schemaVersion=1&panes={explore}", **link},
    ]


def annotation(name, color, expr, title, **more):
    return {"name": name, "datasource": SOURCE, "enable": True, "hide": False, "iconColor": color, "expr": selected(expr),
            "titleFormat": title, "textFormat": "", **more}


def main():
    dashboard = {
        "uid": "switchboard",
        "title": "Switchboard",
        "description": "One relay or several: the worst node first, connected users, the outcome of every message, delivery times, and use of the limits.",
        "tags": ["switchboard"],
        "schemaVersion": 39,
        "version": 2,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [
            annotation("Drains", "orange", "switchboard_draining == 1", "{{instance}} drains", step="10s"),
            annotation("Starts", "blue", "switchboard_process_start_time_seconds * 1000", "{{instance}} started", step="60s", useValueForTime=True),
        ]},
        "links": links(),
        "templating": {"list": variables()},
        "panels": all_panels(),
    }
    # One line for each panel, so that a change of one is a change of one line.
    panels = ",\n".join(json.dumps(one, ensure_ascii=False) for one in dashboard.pop("panels"))
    head = json.dumps(dashboard, indent=1, ensure_ascii=False).removesuffix("\n}")
    print(f'{head},\n "panels": [\n{panels}\n]}}')


if __name__ == "__main__":
    main()
