"""List of settings that an import did not convert, and environment variables for secrets of the file."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import TYPE_CHECKING

from gateway.config.yaml_messages import MUST_BE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.errors import ConfigIssue
    from gateway.migration.source import SourceField, SourceKeys

EQUIVALENTS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("litellm_params.timeout", "litellm_params.stream_timeout"), "use timeouts of the model"),
        **dict.fromkeys(("router_settings.timeout", "litellm_settings.request_timeout"), "use timeouts of the models"),
        "litellm_params.max_parallel_requests": "use max_concurrency of the model",
        "litellm_params.max_tokens": "use default_max_tokens of the route",
        **dict.fromkeys(("litellm_params.rpm", "litellm_params.tpm"), "use weight of the students of the route"),
        "litellm_params.aws_access_key_id": "set AWS_ACCESS_KEY_ID in the gateway's environment",
        "litellm_params.aws_secret_access_key": "set AWS_SECRET_ACCESS_KEY in the gateway's environment",
        "litellm_params.aws_session_token": "set AWS_SESSION_TOKEN in the gateway's environment",
        "litellm_params.vertex_credentials": "set GOOGLE_APPLICATION_CREDENTIALS in the gateway's environment",
        "model_info.base_model": "use price of the model",
        "model_info.max_output_tokens": "use max_output_tokens of the model",
        **dict.fromkeys(
            ("litellm_params.num_retries", "router_settings.num_retries", "litellm_settings.num_retries"),
            "use retries.num_retries of the routes",
        ),
        **dict.fromkeys(
            ("router_settings.allowed_fails", "litellm_settings.allowed_fails"), "use breaker of the models"
        ),
        **dict.fromkeys(("router_settings.cooldown_time", "litellm_params.cooldown_time"), "use breaker of the models"),
        **dict.fromkeys(
            ("litellm_settings.max_budget", "litellm_settings.budget_duration"), "use budget of the tenant"
        ),
        "litellm_settings.max_end_user_budget": "use a label with user: true and a budget",
        "litellm_settings.default_key_generate_params": "use defaults.key_limits and defaults.key_budget",
        "litellm_settings.default_team_params": "use defaults.limits and defaults.budget",
        "general_settings.max_parallel_requests": "use defaults.key_limits.max_parallel_requests",
        "general_settings.global_max_parallel_requests": "use server.max_in_flight",
        "general_settings.max_request_size_mb": "use server.max_body",
        "general_settings.database_url": "use usage.url",
        "general_settings.allow_requests_on_db_unavailable": "use redis.on_failure",
        "credential_list": "write api_key and api_base into litellm_params",
        "environment_variables": "set them in the gateway's environment",
        "include": "copy the included files into this file, and import again",
    }
)
"""Settings of LiteLLM with one equivalent in docs/litellm.md, which the import leaves to the operator."""


class ImportNotes:
    """List of settings that an import did not convert.

    A literal secret is in the list, too: the operator sets an environment variable to it.
    """

    def __init__(self, issues: Iterable[ConfigIssue], variables: Iterable[str]) -> None:
        """Begin the list with issues of the file. `variables` are names that no literal secret gets."""
        self.issues = list(issues)
        self._referenced = frozenset(variables)
        self._variables: dict[str, str] = {}  # by literal secret

    def add(self, field: SourceField, remedy: str = "") -> None:
        """Add a value that was not converted, with a reason or remedy that contains no secret."""
        self.issues.append(field.issue(f"not converted: {remedy}" if remedy else "not converted"))

    def add_rest(self, *mappings: SourceKeys) -> None:
        """Add all values that no converter took, with their equivalents."""
        for field in (field for keys in mappings for field in keys.rest()):
            self.add(field, EQUIVALENTS.get(".".join(map(str, field.loc[-2:])), ""))

    def children(
        self, field: SourceField | None, kind: type[dict[str, object]] | type[list[object]]
    ) -> list[SourceField]:
        """Return the values of a mapping or a list. A value of another type is added to the list."""
        if field is None:
            return []
        if not isinstance(field.value, kind):
            self.add(field, MUST_BE[kind])
            return []
        return field.children()

    def number(self, field: SourceField | None) -> Decimal | None:
        """Return a number, which may be written as text. Another value is added to the list."""
        if field is None:
            return None
        try:
            number = Decimal("NaN" if isinstance(field.value, bool) else str(field.value))
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite():
            self.add(field, "must be a number")
            return None
        return number

    def secret(self, field: SourceField, variable: str) -> str:
        """Return a reference for config.yaml. A literal secret is not copied: `variable` is the name to set for it.

        Equal secrets have the same variable. Different ones never do.
        """
        if field.variable is not None:
            return f"env:{field.variable}"
        text = str(field.value)
        while text not in self._variables and variable in {*self._referenced, *self._variables.values()}:
            variable += "_2"
        variable = self._variables.setdefault(text, variable)
        self.add(field, f"set the environment variable {variable} to this secret")
        return f"env:{variable}"
