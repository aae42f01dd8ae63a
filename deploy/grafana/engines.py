"""The dashboard of engines, errors and the gateway itself."""

from __future__ import annotations

from deploy.grafana.panels import Choice, Dashboard, Panel, Query
from deploy.grafana.shared import FAILED_REQUESTS, SMALL

_OF = '{engine=~"$engine"}'
_WHO = '{tenant=~"$tenant", route=~"$route"}'
_FAILED = '{tenant=~"$tenant", route=~"$route", status!~"ok|client_gone"}'
_YES_OR_NO = {0: ("no", "red"), 1: ("yes", "green")}

ENGINES = Dashboard(
    "gkt-engines",
    "GKT: engines and errors",
    "Results of engines, rejected requests, and resources of the gateway's processes.",
    (
        Choice("tenant", "gkt_requests_total"),
        Choice("route", 'gkt_requests_total{tenant=~"$tenant"}'),
        Choice("engine", "gkt_engine_up"),
    ),
    (
        Panel(
            "Requests per second",
            "Ended requests with a receipt, successful or not.",
            "reqps",
            (Query(f"sum(rate(gkt_requests_total{_WHO}[$__rate_interval]))"),),
            **SMALL,
        ),
        FAILED_REQUESTS,
        Panel("Held now", "Requests in flight in all workers.", "short", (Query("sum(gkt_in_flight)"),), **SMALL),
        Panel(
            "Redis",
            "Whether Redis answers every worker.",
            "short",
            (Query("min(gkt_redis_up)"),),
            words={0: ("away", "red"), 1: ("there", "green")},
            **SMALL,
        ),
        Panel(
            "Receipts lost",
            "Receipts dropped in the selected time because memory and spool were full. Each is in the log.",
            "short",
            (Query("sum(increase(gkt_receipts_lost_total[$__range]))"),),
            bad=1,
            **SMALL,
        ),
        Panel(
            "Versions",
            "Running versions, and their number of gateways.",
            "short",
            (Query("count by (version) (gkt_build_info)", "{{version}}"),),
            kind="stat",
            width=4,
            height=4,
        ),
        "Engines",
        Panel(
            "Up",
            "Whether each engine answered the last probe of every worker.",
            "short",
            (Query(f"min by (engine) (gkt_engine_up{_OF})", "{{engine}}"),),
            kind="state-timeline",
            words=_YES_OR_NO,
        ),
        Panel(
            "Breaker",
            "State of the circuit breaker. The worst state of all workers.",
            "short",
            (Query(f"max by (engine) (gkt_engine_breaker{_OF})", "{{engine}}"),),
            kind="state-timeline",
            words={0: ("called", "green"), 1: ("on trial", "yellow"), 2: ("left alone", "red")},
        ),
        Panel(
            "Calls under way",
            "In all roles, of all workers.",
            "short",
            (Query(f"sum by (engine) (gkt_engine_in_flight{_OF})", "{{engine}}"),),
        ),
        Panel(
            "Failed calls per second",
            "By engine and error label: docs/clients.md#errors.",
            "short",
            (
                Query(
                    f"sum by (engine, label) (rate(gkt_engine_errors_total{_OF}[$__rate_interval]))",
                    "{{engine}} {{label}}",
                ),
            ),
            stacked=True,
            width=12,
        ),
        Panel(
            "Retries per second",
            "By engine of the retry and previous error.",
            "short",
            (
                Query(
                    f"sum by (engine, label) (rate(gkt_retries_total{_OF}[$__rate_interval]))", "{{engine}} {{label}}"
                ),
            ),
            stacked=True,
            width=12,
        ),
        "Errors",
        Panel(
            "Unsuccessful requests per second",
            "By status.",
            "reqps",
            (
                Query(
                    'sum by (status) (rate(gkt_requests_total{tenant=~"$tenant", route=~"$route", status!="ok"}'
                    "[$__rate_interval]))",
                    "{{status}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Failures by route",
            "Fraction of the requests of each route.",
            "percentunit",
            (
                Query(
                    f"sum by (tenant, route) (rate(gkt_requests_total{_FAILED}[$__rate_interval])) / "
                    f"sum by (tenant, route) (rate(gkt_requests_total{_WHO}[$__rate_interval]))",
                    "{{tenant}} {{route}}",
                ),
            ),
            warn=0.01,
            bad=0.05,
        ),
        Panel(
            "Unguided, by reason",
            "Unguided answers of guided routes, per second.",
            "reqps",
            (
                Query(
                    'sum by (reason) (rate(gkt_unguided_total{route=~"$route"}[$__rate_interval]))',
                    "{{reason}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Requests rejected without a receipt, per second",
            "By error label, such as an invalid key, an invalid body, or an exceeded limit.",
            "reqps",
            (Query("sum by (status) (rate(gkt_refused_total[$__rate_interval]))", "{{status}}"),),
            stacked=True,
        ),
        Panel(
            "Requests rejected by a limit or a budget, per second",
            "Whose, and which.",
            "reqps",
            (
                Query(
                    'sum by (tenant, limit) (rate(gkt_limited_total{tenant=~"$tenant"}[$__rate_interval]))',
                    "{{tenant}} {{limit}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Shadows per second",
            "Guided answers in addition to the served one, only for a receipt, by result.",
            "reqps",
            (Query("sum by (result) (rate(gkt_shadows_total[$__rate_interval]))", "{{result}}"),),
            stacked=True,
        ),
        "Books and settings",
        Panel(
            "Receipts that wait",
            "In memory until Redis stores them. Above 10,000 in one worker, the oldest are only in the spool.",
            "short",
            (Query("sum by (instance) (gkt_receipts_waiting)", "{{instance}}"),),
            warn=1000,
            bad=8000,
        ),
        Panel(
            "Requests without an intent or lost with a process",
            "missed: Redis was unavailable. abandoned: the process died, and the reservation is charged.",
            "short",
            (
                Query("sum(increase(gkt_intents_missed_total[$__rate_interval]))", "missed"),
                Query("sum(increase(gkt_intents_abandoned_total[$__rate_interval])) or vector(0)", "abandoned"),
            ),
        ),
        Panel(
            "Files that wait",
            "policies: the files are invalid, earlier ones are in effect. config.yaml: a part of it is not in use.",
            "short",
            (
                Query("max by (instance) (gkt_policy_stale)", "policies, {{instance}}"),
                Query("max by (instance) (gkt_config_stale)", "config.yaml, {{instance}}"),
            ),
            kind="state-timeline",
            words={0: ("current", "green"), 1: ("look at them", "red")},
        ),
        Panel(
            "Policy edits",
            "Counted by each worker.",
            "short",
            (Query("sum by (result) (increase(gkt_policy_reloads_total[$__rate_interval]))", "{{result}}"),),
        ),
        Panel(
            "Budget events posted",
            "Notifications of the webhook, by outcome.",
            "short",
            (Query("sum by (outcome) (increase(gkt_webhooks_total[$__rate_interval]))", "{{outcome}}"),),
        ),
        Panel(
            "Omitted log lines per second",
            "Normal requests outside of log.requests.sample.",
            "short",
            (Query("sum by (instance) (rate(gkt_log_requests_left_out_total[$__rate_interval]))", "{{instance}}"),),
        ),
        "Usage worker",
        Panel(
            "Usage worker",
            "Whether any worker of the fleet writes receipts to the usage database.",
            "short",
            (Query("min by (instance) (gkt_usage_up)", "{{instance}}"),),
            kind="state-timeline",
            words={0: ("does not write", "red"), 1: ("writes", "green")},
        ),
        Panel(
            "Age of the oldest waiting receipt",
            "Delay of usage and of the dashboard. About a second is normal.",
            "s",
            (Query("max(gkt_usage_lag_seconds)", "lag"),),
            warn=60,
            bad=300,
        ),
        Panel(
            "Lag of the read replica",
            "Delay of the replica behind the usage database. Grows while workers cannot reach it. 0 without a replica.",
            "s",
            (Query("max(gkt_usage_replica_lag_seconds)", "lag"),),
            warn=60,
            bad=300,
        ),
        Panel(
            "Receipts in Redis",
            "waiting: not in the usage database. buffered: in the outboxes, limited by receipts.max_buffered. "
            "Above the limit, the oldest are lost.",
            "short",
            (
                Query("max(gkt_usage_waiting)", "waiting"),
                Query("max(gkt_receipts_buffered)", "buffered"),
            ),
        ),
        Panel(
            "Receipts handled by usage workers, per second",
            "By result: inserted, replaced an abandoned one, duplicate, imported from an archive, deleted after "
            "usage.keep.",
            "short",
            (
                Query(
                    'max by (result) (rate(gkt_usage_receipts{result!~"missed|unreadable"}[$__rate_interval]))',
                    "{{result}}",
                ),
            ),
        ),
        Panel(
            "Receipts lost, missed or unreadable",
            "lost: memory, spool or Redis were full. missed: trimmed after a worker had read them. unreadable: "
            "stored in the table usage_unreadable.",
            "short",
            (
                Query("sum(increase(gkt_receipts_lost_total[$__rate_interval]))", "lost"),
                Query(
                    'max by (result) (increase(gkt_usage_receipts{result=~"missed|unreadable"}[$__rate_interval]))',
                    "{{result}}",
                ),
            ),
            bad=1,
        ),
        Panel(
            "Spool",
            "Receipts on disk while Redis is unavailable, and failed writes.",
            "short",
            (
                Query("sum by (instance) (gkt_spool_receipts)", "receipts, {{instance}}"),
                Query(
                    "sum by (instance) (increase(gkt_spool_failures_total[$__rate_interval]))", "failed, {{instance}}"
                ),
            ),
        ),
        "Processes",
        Panel(
            "Memory",
            "Resident memory of each worker.",
            "bytes",
            (Query("gkt_process_resident_memory_bytes", "{{instance}} worker {{worker}}"),),
        ),
        Panel(
            "Cores",
            "CPU cores in use by each worker, at most one.",
            "short",
            (Query("rate(gkt_process_cpu_seconds_total[$__rate_interval])", "{{instance}} worker {{worker}}"),),
            warn=0.8,
            bad=0.95,
        ),
        Panel(
            "Open files",
            "Fraction of the limit of each worker. Connections are files.",
            "percentunit",
            (Query("gkt_process_open_fds / gkt_process_max_fds", "{{instance}} worker {{worker}}"),),
            warn=0.6,
            bad=0.8,
        ),
        Panel(
            "Connections",
            "Open connections, by listener.",
            "short",
            (Query("sum by (instance, listener) (gkt_connections)", "{{instance}} {{listener}}"),),
            width=12,
        ),
        Panel(
            "Starts",
            "Uptime of each worker.",
            "s",
            (Query("time() - gkt_process_start_timestamp_seconds", "{{instance}} worker {{worker}}"),),
            width=12,
        ),
    ),
)
