"""How engines do, what fails, and how the gateway itself is."""

from __future__ import annotations

from typing import Any

from deploy.grafana.panels import Choice, Dashboard, Panel, Query

_OF = '{engine=~"$engine"}'
_WHO = '{tenant=~"$tenant", route=~"$route"}'
_FAILED = '{tenant=~"$tenant", route=~"$route", status!~"ok|client_gone"}'
_SMALL: dict[str, Any] = {"kind": "stat", "width": 4, "height": 4}
_YES_OR_NO = {0: ("no", "red"), 1: ("yes", "green")}

ENGINES = Dashboard(
    "gkt-engines",
    "GKT: engines and errors",
    "What engines answer, what callers are refused, and what the gateway's own processes take.",
    (
        Choice("tenant", "gkt_requests_total"),
        Choice("route", 'gkt_requests_total{tenant=~"$tenant"}'),
        Choice("engine", "gkt_engine_up"),
    ),
    (
        Panel(
            "Requests per second",
            "That ended, with a receipt, well or not.",
            "reqps",
            (Query(f"sum(rate(gkt_requests_total{_WHO}[$__rate_interval]))"),),
            **_SMALL,
        ),
        Panel(
            "Requests that fail",
            "As a part of all, over the chosen time. Callers who hang up are no failure. "
            "GktErrorRateHigh alerts above 5 %.",
            "percentunit",
            (
                Query(
                    f"(sum(increase(gkt_requests_total{_FAILED}[$__range])) or vector(0)) / "
                    f"sum(increase(gkt_requests_total{_WHO}[$__range]))"
                ),
            ),
            warn=0.01,
            bad=0.05,
            **_SMALL,
        ),
        Panel("Held now", "Requests under way in all workers.", "short", (Query("sum(gkt_in_flight)"),), **_SMALL),
        Panel(
            "Redis",
            "Whether it answers every worker.",
            "short",
            (Query("min(gkt_redis_up)"),),
            words={0: ("away", "red"), 1: ("there", "green")},
            **_SMALL,
        ),
        Panel(
            "Receipts lost",
            "Dropped over the chosen time: too many waited, and the spool had no room. Each stands in the log.",
            "short",
            (Query("sum(increase(gkt_receipts_lost_total[$__range]))"),),
            bad=1,
            **_SMALL,
        ),
        Panel(
            "Versions",
            "Which ones run, and in how many gateways.",
            "short",
            (Query("count by (version) (gkt_build_info)", "{{version}}"),),
            kind="stat",
            width=4,
            height=4,
        ),
        "Engines",
        Panel(
            "Up",
            "Whether each answered its last probe, of every worker.",
            "short",
            (Query(f"min by (engine) (gkt_engine_up{_OF})", "{{engine}}"),),
            kind="state-timeline",
            words=_YES_OR_NO,
        ),
        Panel(
            "Breaker",
            "Whether each is called. The worst of all workers.",
            "short",
            (Query(f"max by (engine) (gkt_engine_breaker{_OF})", "{{engine}}"),),
            kind="state-timeline",
            words={0: ("called", "green"), 1: ("on trial", "yellow"), 2: ("left alone", "red")},
        ),
        Panel(
            "Calls under way",
            "In any role, by all workers.",
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
            "Calls made anew, per second",
            "By the engine that is asked now, and what failed before.",
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
            "Requests that did not end well, per second",
            "By what became of them.",
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
            "As a part of its requests.",
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
            "Answers of guided routes that went without guidance, per second.",
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
            "Refused before they had a receipt, per second",
            "By error label: a wrong key, a wrong body, no room in a limit.",
            "reqps",
            (Query("sum by (status) (rate(gkt_refused_total[$__rate_interval]))", "{{status}}"),),
            stacked=True,
        ),
        Panel(
            "Refused for a limit or a budget, per second",
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
            "Guided answers made beside others for their receipt alone, by what became of them.",
            "reqps",
            (Query("sum by (result) (rate(gkt_shadows_total[$__rate_interval]))", "{{result}}"),),
            stacked=True,
        ),
        "Books and settings",
        Panel(
            "Receipts that wait",
            "In memory, until Redis takes them. Beyond 10,000 in one worker the oldest are in the spool alone.",
            "short",
            (Query("sum by (instance) (gkt_receipts_waiting)", "{{instance}}"),),
            warn=1000,
            bad=8000,
        ),
        Panel(
            "Requests without an intent, or lost with their process",
            "missed: Redis was away. abandoned: the process died, and they are charged what was reserved.",
            "short",
            (
                Query("sum(increase(gkt_intents_missed_total[$__rate_interval]))", "missed"),
                Query("sum(increase(gkt_intents_abandoned_total[$__rate_interval])) or vector(0)", "abandoned"),
            ),
        ),
        Panel(
            "Files that wait",
            "policies: the files are wrong, older ones hold. config.yaml: it says something else than what runs.",
            "short",
            (
                Query("max by (instance) (gkt_policy_stale)", "policies, {{instance}}"),
                Query("max by (instance) (gkt_config_stale)", "config.yaml, {{instance}}"),
            ),
            kind="state-timeline",
            words={0: ("as they should be", "green"), 1: ("look at them", "red")},
        ),
        Panel(
            "Policy edits",
            "As often as workers saw one.",
            "short",
            (Query("sum by (result) (increase(gkt_policy_reloads_total[$__rate_interval]))", "{{result}}"),),
        ),
        Panel(
            "Budget events posted",
            "To the webhook, by outcome.",
            "short",
            (Query("sum by (outcome) (increase(gkt_webhooks_total[$__rate_interval]))", "{{outcome}}"),),
        ),
        Panel(
            "Lines left out of the log, per second",
            "Ordinary requests, as log.requests.sample wants it.",
            "short",
            (Query("sum by (instance) (rate(gkt_log_requests_left_out_total[$__rate_interval]))", "{{instance}}"),),
        ),
        "Usage worker",
        Panel(
            "Usage worker",
            "Whether a worker writes receipts to the usage database, over the fleet.",
            "short",
            (Query("min by (instance) (gkt_usage_up)", "{{instance}}"),),
            kind="state-timeline",
            words={0: ("does not write", "red"), 1: ("writes", "green")},
        ),
        Panel(
            "Age of the oldest waiting receipt",
            "Usage and the dashboard lag behind by this much. About a second is usual.",
            "s",
            (Query("max(gkt_usage_lag_seconds)", "lag"),),
            warn=60,
            bad=300,
        ),
        Panel(
            "Receipts in Redis",
            "waiting: not in the usage database. buffered: in the outboxes, bounded by receipts.max_buffered. Beyond "
            "the bound the oldest are lost.",
            "short",
            (
                Query("max(gkt_usage_waiting)", "waiting"),
                Query("max(gkt_receipts_buffered)", "buffered"),
            ),
        ),
        Panel(
            "Receipts handled by usage workers, per second",
            "By result: inserted, replaced an abandoned one, known already, imported from an archive, deleted after "
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
            "lost: more waited than memory, spool or Redis may hold. missed: trimmed after a worker had read them. "
            "unreadable: kept in the table usage_unreadable.",
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
            "Receipts on disk while Redis does not take them, and writes that failed.",
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
            "Resident, of each worker.",
            "bytes",
            (Query("gkt_process_resident_memory_bytes", "{{instance}} worker {{worker}}"),),
        ),
        Panel(
            "Cores",
            "How many each worker keeps busy. One is all that it can use.",
            "short",
            (Query("rate(gkt_process_cpu_seconds_total[$__rate_interval])", "{{instance}} worker {{worker}}"),),
            warn=0.8,
            bad=0.95,
        ),
        Panel(
            "Open files",
            "As a part of what each worker may have open. Connections are files.",
            "percentunit",
            (Query("gkt_process_open_fds / gkt_process_max_fds", "{{instance}} worker {{worker}}"),),
            warn=0.6,
            bad=0.8,
        ),
        Panel(
            "Connections",
            "Open ones, by listener.",
            "short",
            (Query("sum by (instance, listener) (gkt_connections)", "{{instance}} {{listener}}"),),
            width=12,
        ),
        Panel(
            "Starts",
            "How long each worker has been up.",
            "s",
            (Query("time() - gkt_process_start_timestamp_seconds", "{{instance}} worker {{worker}}"),),
            width=12,
        ),
    ),
)
