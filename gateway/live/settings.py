"""Apply an edit of config.yaml to the running process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway import wiring
from gateway.accounting.request_log import LogSample
from gateway.config.changes import live_changes
from gateway.policy.reload import SettingsChange

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.accounting.budget_watch import BudgetAlerts
    from gateway.accounting.labels import Labeler
    from gateway.accounting.ledger import Ledger
    from gateway.config.settings import Settings
    from gateway.keys.identity.issuers import Issuers
    from gateway.live.engines import LiveEngines
    from gateway.pipeline.admission import Admission
    from gateway.policy.book import PolicySet
    from gateway.policy.policies import Policies
    from gateway.usage.spend_watch import SpendWatch


@dataclass(slots=True)
class RunningSettings:
    """The settings in use, with the parts of the process that follow them."""

    settings: Settings
    engines: LiveEngines
    policies: Policies
    admission: Admission
    ledger: Ledger
    alerts: BudgetAlerts
    spend: SpendWatch
    labeler: Labeler
    issuers: Issuers

    async def apply(self, settings: Settings, policy_set: PolicySet, commit: Callable[[], None]) -> SettingsChange:
        """Put valid settings and the policies of `commit` into effect in one step; see `LiveSettings`.

        Settings that need a restart have no effect.
        """
        changed = live_changes(self.settings, settings)

        def commit_all() -> None:
            self._use(settings)
            commit()

        models = await self.engines.apply(settings.models, policy_set, commit_all)
        return SettingsChange(models, tuple(changed))

    def _use(self, settings: Settings) -> None:
        self.settings = settings
        self.policies.defaults = settings.defaults
        self.admission.use_defaults(settings.defaults)
        self.alerts.use(*wiring.webhook_of(settings))
        self.spend.settings = settings.alerts
        self.labeler.use(wiring.hash_key_of(settings))
        self.ledger.sample = log_sample_of(settings)
        self.issuers.use(settings.identity)


def log_sample_of(settings: Settings) -> LogSample:
    """Return which requests are logged."""
    return LogSample(settings.log.requests.sample, settings.log.requests.slow_s)
