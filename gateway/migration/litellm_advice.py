"""Settings of the LiteLLM proxy without an equivalent: reason and replacement, as data."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_NONE = "no equivalent, not imported"
_RATE = "an engine has no rate limit: max_concurrency limits its calls, and limits in a policy limit callers"
_DEFAULT_FIELD = "requests have no default for this field: callers send it"
_CONDITIONS = "use routes with conditions (`gkt-gateway docs policies#conditions`)"
_CONTEXT = (
    "add a model with a larger context to students of the route: it gets the requests that exceed a student's context "
    "(`gkt-gateway docs engines#when-an-engine-fails`)"
)
_TAGS = (
    "tags of a model select nothing: use routes of one name with the condition tags "
    "(`gkt-gateway docs policies#conditions`)"
)
_METRICS = "no logging callbacks: use metrics, traces, receipts and the usage database (`gkt-gateway docs operations`)"
_GUARDRAILS = "no guardrails: keep them before the gateway"
_DATABASE = (
    "no LiteLLM database: keys, budgets and receipts are in Redis and the usage database "
    "(`gkt-gateway docs deployment`)"
)
_KEYS = "not imported, as virtual keys are in LiteLLM's database: create keys with `gkt-gateway keys create`"
_USERS = "no users: a tenant has keys, each with limits and a budget (`gkt-gateway docs policies#keys`)"
_HEALTH = "engines are probed all the time (`gkt-gateway docs engines`): GET /readyz of the admin listener"
_ANSWER_CACHE = "no cache of answers; guidance.cache_ttl caches guidance"
_RETRIES = "one number of retries for all errors: retries of a route"
_LOGIN = "no single sign-on and no roles: one admin key (admin.key)"
_PRICES = "a model has one price for each kind of token (`gkt-gateway docs cost#prices`)"
_MODES = "only chats, texts and embeddings are served"

VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "aws_access_key_id": "AWS_ACCESS_KEY_ID",
        "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "aws_session_token": "AWS_SESSION_TOKEN",
        "aws_profile_name": "AWS_PROFILE",
        "vertex_credentials": "GOOGLE_APPLICATION_CREDENTIALS",
        "azure_ad_token": "AZURE_AD_TOKEN",
        "tenant_id": "AZURE_TENANT_ID",
        "client_id": "AZURE_CLIENT_ID",
        "client_secret": "AZURE_CLIENT_SECRET",
    }
)
"""Environment variables of providers' credentials, by parameter of a deployment."""

PARAMETERS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("rpm", "tpm", "itpm", "otpm", "rpd", "tpd", "daily_reset_time"), _RATE),
        **dict.fromkeys(("default_api_key_rpm_limit", "default_api_key_tpm_limit"), "use key_limits of a policy"),
        **dict.fromkeys(("weight", "order"), "not needed for the only deployment of a model_name"),
        **dict.fromkeys(("max_budget", "budget_duration"), "an engine has no budget: tenants and keys have budgets"),
        **dict.fromkeys(("tags", "tag_regex"), _TAGS),
        "max_retries": "retries are those of a route: retries.num_retries",
        **dict.fromkeys(("organization", "project"), "not sent: use an API key of that organization"),
        **dict.fromkeys(("extra_headers", "headers"), "engines get no additional headers"),
        **dict.fromkeys(("api_version", "vertex_project", "vertex_location", "aws_region_name", "region_name"),
                        "the provider of this model does not take it"),
        "drop_params": "a parameter that the provider lacks is an error (`gkt-gateway docs engines#litellm-providers`)",
        "silent_model": "use mode shadow or quality (`gkt-gateway docs policies#shadow`)",
        "mock_response": "engines are called; there are no mock answers",
        **dict.fromkeys(
            ("temperature", "top_p", "top_k", "seed", "stop", "n", "presence_penalty", "frequency_penalty",
             "reasoning_effort", "thinking", "extra_body", "response_format", "tools", "logit_bias", "user"),
            _DEFAULT_FIELD,
        ),
        "input_cost_per_second": "write a price per hour: gpu_usd_per_hour (`gkt-gateway docs cost#prices`)",
        "output_cost_per_second": "write a price per hour: gpu_usd_per_hour (`gkt-gateway docs cost#prices`)",
        "use_in_pass_through": "no pass-through endpoints",
        "cache_control_injection_points": "callers send cache_control, for Anthropic's models "
        "(`gkt-gateway docs apis#messages`)",
    }
)  # fmt: skip
"""Keys of litellm_params."""

MODEL_INFO: Mapping[str, str] = MappingProxyType(
    {
        "access_groups": "a key names its models: `gkt-gateway keys create --models A,B`",
        "team_id": "a route belongs to a tenant: move it to the tenant's policy file",
        "blocked": "remove the model from config.yaml, or its route from the policy",
        "max_input_tokens": "the gateway reads the context length from engines that report it",
        "": "information for LiteLLM only",
    }
)
"""Keys of model_info, and of an entry of model_list."""

ROUTER: Mapping[str, str] = MappingProxyType(
    {
        "routing_strategy": "deployments are drawn by weight only, for each conversation "
        "(`gkt-gateway docs policies#replicas-and-conversations`)",
        "routing_strategy_args": "deployments are drawn by weight only",
        "context_window_fallbacks": _CONTEXT,
        "content_policy_fallbacks": "no fallback after a content filter: the caller gets its error",
        "max_fallbacks": "retries.max_per_request of a route limits all retries of a request",
        **dict.fromkeys(("retry_policy", "model_group_retry_policy", "allowed_fails_policy"), _RETRIES),
        "retry_after": "retries.backoff of a route is the first pause, 100ms by default",
        "disable_cooldowns": "the circuit breaker cannot be disabled: raise breaker.failures of a model",
        "enable_pre_call_checks": _CONTEXT,
        "optional_pre_call_checks": "conversations stay with their engine by default (affinity of a route)",
        "enable_tag_filtering": _TAGS,
        "tag_filtering_match_any": _TAGS,
        "provider_budget_config": "an engine has no budget: tenants and keys have budgets",
        "default_litellm_params": _DEFAULT_FIELD,
        "default_priority": "tenants share a busy teacher by weight (`gkt-gateway docs policies`)",
        "assistants_config": _MODES,
        "search_tools": _MODES,
        **dict.fromkeys(("cache_responses", "cache_kwargs", "caching_groups"), _ANSWER_CACHE),
    }
)
"""Keys of router_settings."""

LITELLM: Mapping[str, str] = MappingProxyType(
    {
        **{name: ROUTER[name] for name in ("context_window_fallbacks", "content_policy_fallbacks", "max_fallbacks")},
        "drop_params": PARAMETERS["drop_params"],
        "modify_params": "requests are not modified for providers",
        **dict.fromkeys(("cache", "cache_params", "enable_redis_auth_cache"), _ANSWER_CACHE),
        "service_callback": _METRICS,
        "json_logs": "log.format: json writes JSON lines",
        "redact_user_api_key_info": "logs and receipts have the id of a key, never the key",
        "default_team_settings": "a team is a tenant: copy policies/default.yaml to policies/TEAM.yaml, set tenant and "
        "budget there, and create keys with `gkt-gateway keys create --tenant TEAM`",
        "upperbound_key_generate_params": "no upper bounds: defaults.key_limits are for keys without limits",
        **dict.fromkeys(
            ("default_internal_user_params", "max_internal_user_budget", "default_max_internal_user_budget",
             "internal_user_budget_duration", "max_user_budget", "max_end_user_budget_id"),
            _USERS,
        ),
        **dict.fromkeys(("guardrails", "pre_call_rules", "post_call_rules", "skip_system_message_in_guardrail"),
                        _GUARDRAILS),
        "model_alias_map": "write these names to router_settings.model_group_alias, and import again",
        **dict.fromkeys(("ssl_verify", "ssl_security_level"), "engines' certificates are verified with the system's "
                        "certificate store"),
        "force_ipv4": "addresses are those that the resolver returns",
        "turn_off_message_logging": "prompts are not logged by default: log_content of a policy",
        "cost_discount_config": "write discounted prices under price of each model",
        "cost_margin_config": "write prices with the margin under price of each model",
        "mcp_aliases": "no MCP servers",
        "forward_traceparent_to_llm_provider": "traces are propagated to engines by default (tracing.propagate)",
    }
)  # fmt: skip
"""Keys of litellm_settings."""

GENERAL: Mapping[str, str] = MappingProxyType(
    {
        "database_url": "LiteLLM's database is not read: its virtual keys, teams and spend are not imported. Create "
        "keys with `gkt-gateway keys create --tenant default --id NAME`. Receipts are in usage.url, SQLite by default",
        **dict.fromkeys(("store_model_in_db", "supported_db_objects"),
                        "models in LiteLLM's database are not imported: add them to model_list, and import again"),
        "store_prompts_in_spend_logs": "log_content: true in a policy logs prompts and answers",
        "disable_spend_logs": "usage.keep and receipts.ttl limit the storage of receipts",
        "maximum_spend_logs_retention_period": "set usage.keep",
        "allow_requests_on_db_unavailable": "set redis.on_failure, degrade by default "
        "(`gkt-gateway docs policies#redis-outages`)",
        **dict.fromkeys(("alerting", "alerting_args", "alerting_threshold", "alert_types", "alert_to_webhook_url",
                         "spend_report_frequency"), "alerts.webhook gets budget events; Prometheus has alerts "
                        "(`gkt-gateway docs operations#alerts`)"),
        **dict.fromkeys(("custom_auth", "custom_key_generate", "enable_jwt_auth", "litellm_jwtauth",
                         "enable_oauth2_auth", "oauth2_config_mappings"),
                        "callers send keys of the gateway (`gkt-gateway docs policies#keys`)"),
        **dict.fromkeys(("ui_access_mode", "default_team_disabled", "public_routes", "admin_only_routes",
                         "allowed_routes", "custom_sso"), _LOGIN),
        **dict.fromkeys(("background_health_checks", "health_check_interval", "health_check_details"), _HEALTH),
        "completion_model": "requests name their model: there is no default",
        "infer_model_from_keys": "models are those of config.yaml",
        **dict.fromkeys(("key_management_system", "key_management_settings", "use_google_kms", "use_azure_key_vault"),
                        "secrets are references: env:NAME, or file:/path for mounted secrets"),
        "pass_through_endpoints": "no pass-through endpoints",
        "forward_client_headers_to_llm_api": "engines get no headers of callers",
        "max_response_size_mb": "answers have no size limit: default_max_tokens of a route limits them",
        "proxy_batch_write_at": "receipts are written within seconds (`gkt-gateway docs storage`)",
        "coordination_redis": "set redis.url (`gkt-gateway docs policies#redis-requirements`)",
        "user_header_name": _USERS,
        "enforce_user_param": _USERS,
        "proxy_budget_rescheduler_min_time": "budgets need no reset task",
        "proxy_budget_rescheduler_max_time": "budgets need no reset task",
        "master_key": _KEYS,
    }
)  # fmt: skip
"""Keys of general_settings."""

TOP: Mapping[str, str] = MappingProxyType(
    {
        "guardrails": _GUARDRAILS,
        "callback_settings": _METRICS,
        "mcp_servers": "no MCP servers",
        "mcp_tools": "no MCP servers",
        "litellm_jwtauth": GENERAL["enable_jwt_auth"],
        "prompts": "no prompt management",
        **dict.fromkeys(("files_settings", "finetune_settings", "vector_store_registry", "search_tools",
                         "assistant_settings", "agent_list"), _MODES),
    }
)  # fmt: skip
"""Top-level keys."""

_PREFIXES = {
    **dict.fromkeys(("input_cost_per_", "output_cost_per_", "cache_read_", "cache_creation_"), _PRICES),
    "supports_": "information for LiteLLM's clients only",
    "aws_": "AWS's own settings apply: set them in the gateway's environment (AWS_PROFILE, AWS_REGION, ...)",
    "azure_": "set it in the gateway's environment, where LiteLLM reads it",
    "vertex_": "set it in the gateway's environment, where LiteLLM reads it",
    "anthropic_": "set it in the gateway's environment, where LiteLLM reads it",
    "watsonx_": "set it in the gateway's environment, where LiteLLM reads it",
    "database_": _DATABASE,
    "langfuse_": _METRICS,
    "langsmith_": _METRICS,
    "datadog_": _METRICS,
    "prometheus_": "metrics and labels are those of `gkt-gateway docs metrics`",
    "complexity_router": _CONDITIONS,
    "auto_router": _CONDITIONS,
    "adaptive_router": _CONDITIONS,
    "quality_router": _CONDITIONS,
    "health_check_": _HEALTH,
}
_CALLBACKS = {
    "prometheus": "metrics need no callback: GET /metrics of the admin listener (`gkt-gateway docs metrics`)",
    "otel": "set tracing.endpoint or OTEL_EXPORTER_OTLP_ENDPOINT, without /v1/traces "
    "(`gkt-gateway docs operations#tracing`)",
    "s3": "gkt-gateway usage export writes receipts",
}


def advice(table: Mapping[str, str], name: str) -> str:
    """Return reason and replacement for a setting without an equivalent."""
    found = table.get(name)
    if found is None:
        found = next((text for prefix, text in _PREFIXES.items() if name.startswith(prefix)), table.get("", _NONE))
    return found


def callback_advice(name: str) -> str:
    """Return the replacement of a callback."""
    return _CALLBACKS.get(name, _METRICS)
