"""The composition root: constructs all parts of a gateway process and closes them."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import structlog
from aiohttp import web

from gateway import wiring
from gateway.accounting.answer_length_book import AnswerLengths
from gateway.accounting.budget_watch import BudgetAlerts, BudgetMonitor
from gateway.accounting.budgets import Budgets, LimitUsage
from gateway.accounting.edge_book import EdgeBook
from gateway.accounting.intent_reaper import Heartbeat, IntentReaper
from gateway.accounting.label_values import LabelValues
from gateway.accounting.labels import Labeler
from gateway.accounting.ledger import Ledger
from gateway.accounting.local_limits import LocalLimits
from gateway.accounting.redis_ledger import RedisLedger
from gateway.accounting.slice_events import SliceEvents
from gateway.accounting.spooler import Spooler
from gateway.accounting.store import ReceiptStore
from gateway.admin.assets import ASSETS, Assets
from gateway.admin.collected import SAMPLES
from gateway.admin.cookies import no_issuer
from gateway.admin.guidance import GUIDANCE
from gateway.admin.login_state import LoginStates
from gateway.admin.login_throttle import ATTEMPTS, LoginThrottle
from gateway.admin.oidc import OIDC, OidcProvider
from gateway.admin.oidc_login import LOGIN_STATES
from gateway.admin.quality import QUALITY
from gateway.admin.reliability import REJECTED
from gateway.admin.routes import ROUTES as ADMIN_ROUTES
from gateway.admin.routes import access_checks
from gateway.admin.session import SESSIONS, Sessions
from gateway.api import keys
from gateway.api.cors import allow_origins
from gateway.api.decoding import BODY_DECODER, BodyDecoder
from gateway.api.error_body import render_errors
from gateway.api.not_found import Endpoints
from gateway.api.openapi.document import document
from gateway.api.probes import STARTUP, Readiness
from gateway.api.routes import ROUTES
from gateway.batching.batcher import Batcher
from gateway.batching.single_flight import SingleFlight
from gateway.engines.retry_budget import RetryBudgets
from gateway.keys.audit import AuditTrail
from gateway.keys.callers import Callers
from gateway.keys.follower import KeyFollower
from gateway.keys.held import Keyring
from gateway.keys.identity.issuers import Issuers
from gateway.keys.redis_keyring import RedisKeyring
from gateway.keys.token_callers import TokenCallers
from gateway.pipeline.admission import Admission, Slots
from gateway.pipeline.completion import Completions
from gateway.pipeline.edge_guidance import EdgeGuidancePipeline
from gateway.pipeline.edge_reports import EdgeReports
from gateway.pipeline.embeddings import Embeddings
from gateway.pipeline.engine_upkeep import EngineUpkeep
from gateway.pipeline.guidance_deadlines import GuidanceDeadlines, GuidanceTimes, keep_written, read_times
from gateway.pipeline.quality_sampler import QualitySampler
from gateway.pipeline.redis_responses import RedisResponses
from gateway.pipeline.request_collector import RequestCollector
from gateway.pipeline.shadow import ShadowRequests
from gateway.pipeline.stored_responses import StoredResponses
from gateway.pipeline.student import StudentCall
from gateway.pipeline.student_warmup import StudentWarmup
from gateway.pipeline.teacher import TeacherCall
from gateway.pipeline.token_count import TokenCounter
from gateway.policy.guidance_off import GuidanceSwitches
from gateway.policy.policies import Policies
from gateway.policy.reload import Reloader
from gateway.quality.book import QualityStore
from gateway.quality.feedback import FeedbackStore
from gateway.quality.request_sample import RedisSamples
from gateway.quality.switches import GuidanceSwitchStore, SwitchFollower
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.runtime.fair_share import HARD_BOUND
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.process_metrics import ProcessMetrics
from gateway.usage.access import UsageAccess
from gateway.usage.rejections import Rejections
from gateway.usage.spend_watch import SpendWatch
from gateway.usage.uptime import UptimeReporter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.config.edits import EditResult
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet
    from gateway.policy.config_files import ConfigFiles

log = structlog.get_logger()

_ADMIN_BODY_BYTES = 65_536


class Gateway(NamedTuple):
    """The parts of a gateway process that `server/` uses."""

    public: web.Application
    admin: web.Application
    admission: Admission
    batcher: Batcher
    store: ReceiptStore
    spooler: Spooler
    tasks: BackgroundTasks


@dataclass(frozen=True, slots=True)
class WatchedFiles:
    """The configuration of the process, whose policies it reloads.

    Attributes:
        now: triggers a reload at once.
        edits: the results of edits of config.yaml.
    """

    files: ConfigFiles
    now: asyncio.Event
    edits: asyncio.Queue[EditResult] = field(default_factory=asyncio.Queue)


@asynccontextmanager
async def gateway(
    settings: Settings, book: PolicySet, redis_url: str, worker: int | None = None, watched: WatchedFiles | None = None
) -> AsyncIterator[Gateway]:
    """Construct a gateway, and close its parts on exit.

    `worker` is the number of the worker process. None: there is only one process. Raises StartupError if Redis is
    unreachable or an optional package is missing.
    """
    async with AsyncExitStack() as stack:
        shown = settings.metrics
        metrics = Metrics(worker, shown.max_tenants, shown.labels, shown.max_label_values)
        tasks = BackgroundTasks()
        edition = watched.files.edition() if watched is not None else None
        policies = Policies(book, edition, settings.defaults)
        wiring.name_series(metrics, policies.policy_set)
        policies.on_change(partial(wiring.name_series, metrics))
        wiring.set_deadlines(metrics, policies.policy_set)
        policies.on_change(partial(wiring.set_deadlines, metrics))
        redis_keys = RedisKeys(settings.redis.prefix)
        redis = RedisClient(redis_url, timeout_s=settings.redis.timeout_s, metrics=metrics)
        stack.push_async_callback(redis.close)
        await redis.require()
        process_id = f"{socket.gethostname()}-{secrets.token_hex(6)}"
        tracing, spans, tracing_middlewares = wiring.tracing_parts_of(settings, process_id, metrics)
        if tracing is not None:
            stack.push_async_callback(tracing.close)
        retry_budgets = RetryBudgets()
        upkeep = EngineUpkeep(policies, metrics, tasks)
        stack.push_async_callback(upkeep.close)
        engines = await upkeep.open(settings.models, tracing, retry_budgets)
        wiring.init_engine_series(metrics, engines.by_name)
        limits_of = partial(
            wiring.limits_of, engines=engines, lease_of=wiring.leases_of(settings.redis.lease_s, policies)
        )
        batcher = Batcher(
            redis,
            redis_keys,
            process_id=process_id,
            limits={model.name: limits_of(model.name) for model in settings.models},
            on_failure="reject" if settings.redis.on_failure == "reject" else "degrade",
            metrics=metrics,
        )
        lease_s = settings.redis.lease_s
        receipts = settings.receipts
        in_redis = RedisLedger(
            redis.commands, redis_keys, process_id, receipts.ttl_s, lease_s, redis.queries, policies.slices_of
        )
        usage = UsageAccess(settings, redis, redis_keys, process_id, metrics)
        stack.push_async_callback(usage.close)
        alarm = BudgetAlerts(*wiring.webhook_of(settings), metrics=metrics, tasks=tasks)
        stack.push_async_callback(alarm.close)
        ledger_keys = redis_keys.ledger()
        spend = SpendWatch(
            redis, ledger_keys, usage.database, usage.workers, settings.alerts, metrics, alarm, redis.now
        )
        local_limits = LocalLimits(batcher.processes, batcher.joined_s, by_tenant=redis.is_cluster)
        store = ReceiptStore(
            redis, in_redis, local=local_limits, on_event=alarm.send, archive=usage.receipts.find, metrics=metrics
        )
        redis.on_restart = store.resend
        spooler = Spooler(
            redis, in_redis, store, settings.data / "spool" / settings.redis.prefix, receipts.spool_bytes, metrics
        )
        stack.push_async_callback(spooler.close)
        label_values = LabelValues(redis, redis_keys, redis.now)
        labeler = Labeler(label_values, wiring.hash_key_of(settings))
        budgets = Budgets(redis.commands, redis_keys)
        lengths = AnswerLengths(redis, redis_keys, redis.now)
        ledger = Ledger(
            store,
            process_id=process_id,
            metrics=metrics,
            tasks=tasks,
            sample=wiring.log_sample_of(settings),
            spans=spans,
            lengths=lengths,
            slice_events=SliceEvents(redis, budgets, alarm.send, tasks),
        )
        heartbeat = Heartbeat(
            redis, redis_keys.heartbeat(process_id), lease_s=lease_s, on_beat=store.beat, on_lapse=store.resend
        )
        namespaces = partial(wiring.namespaces_of, policies)
        sweeper = IntentReaper(redis, in_redis, ledger, holds=store.holds, tenants=namespaces, lease_s=lease_s)
        admission = Admission(
            settings.server.max_in_flight,
            ledger,
            metrics,
            defaults=settings.defaults,
            on_redis_failure=settings.redis.on_failure,
        )
        policies.on_change(lambda _: admission.forget_policies())
        times = GuidanceTimes(time.monotonic, await asyncio.to_thread(read_times, settings.data))
        deadlines = GuidanceDeadlines(times)
        warmup = StudentWarmup(metrics, tasks)
        guide = TeacherCall(batcher, SingleFlight(tasks), metrics, tasks, deadlines, retry_budgets, warmup)
        student = StudentCall(metrics, retry_budgets)
        quality = QualityStore(redis.commands, redis_keys, redis.now)
        samples = RedisSamples(redis.queries, redis_keys)
        switches = GuidanceSwitches()
        switch_follower = SwitchFollower(
            GuidanceSwitchStore(redis.commands, redis_keys), switches, metrics.guidance_off
        )
        await switch_follower.start()
        token_counter = TokenCounter(engines)
        completions = Completions(
            teacher_call=guide,
            student_call=student,
            shadows=ShadowRequests(
                guide, student, admission, metrics, tasks, max_in_flight=wiring.max_shadows(settings), tracing=tracing
            ),
            quality_sampler=QualitySampler(
                student,
                admission,
                ledger,
                quality,
                redis,
                metrics,
                tasks,
                max_in_flight=max(1, wiring.max_shadows(settings) // 2),
                switches=switch_follower,
                post_alert=alarm.post,
                tracing=tracing,
            ),
            collector=RequestCollector(samples, redis, tasks),
            admission=admission,
            ledger=ledger,
            switches=switches,
            counter=token_counter,
        )

        rejections = Rejections(redis, redis_keys)
        stack.push_async_callback(rejections.close)
        reads = Slots(max(1, redis.max_queries // HARD_BOUND), "reads", metrics)
        ring, keys_in_redis = Keyring(), RedisKeyring(redis.commands, redis_keys)
        follower = KeyFollower(redis, keys_in_redis, ring)
        await follower.start()
        issuers = Issuers(tasks, metrics)
        stack.push_async_callback(issuers.close)

        public = web.Application(
            client_max_size=settings.server.max_body_bytes,
            middlewares=[render_errors, *tracing_middlewares],
        )
        public.add_routes(ROUTES)
        allow_origins(public, settings.server.cors)
        public[keys.ENDPOINTS] = Endpoints(ROUTES)
        oidc = None if settings.admin.oidc is None else OidcProvider(settings.admin.oidc, issuers)
        issuer_url = no_issuer if oidc is None else oidc.issuer_url
        sessions = Sessions(
            settings.admin.key, redis=redis, keys=redis_keys, oidc=settings.admin.oidc, issuer_url=issuer_url
        )
        admin = web.Application(
            client_max_size=_ADMIN_BODY_BYTES,
            middlewares=[render_errors, *access_checks(settings.admin, sessions, oidc)],
        )
        admin.add_routes(ADMIN_ROUTES)
        allow_origins(admin, settings.admin.cors)
        admin[keys.ENDPOINTS] = Endpoints(ADMIN_ROUTES)
        admin[SESSIONS] = sessions
        if oidc is not None and settings.admin.oidc is not None:
            admin[OIDC] = oidc
            admin[LOGIN_STATES] = LoginStates(settings.admin.key, settings.admin.oidc, issuer_url=issuer_url)
        admin[QUALITY] = quality
        admin[SAMPLES] = samples
        admin[GUIDANCE] = switch_follower
        admin[REJECTED] = rejections
        admin[ATTEMPTS] = LoginThrottle()
        admin[ASSETS] = await asyncio.to_thread(Assets)
        public[keys.DOCUMENT] = document(ROUTES)
        public[BODY_DECODER] = BodyDecoder()
        public[keys.EMBEDDINGS] = Embeddings(admission, ledger, metrics, retry_budgets)
        public[keys.HANDOVER] = EdgeGuidancePipeline(
            teacher_call=guide,
            admission=admission,
            ledger=ledger,
            close_within_s=receipts.ttl_s,
            switches=switches,
        )
        public[keys.EDGE_ACCOUNTS] = EdgeReports(
            redis,
            EdgeBook(redis.queries, redis_keys, receipts.ttl_s),
            store,
            ledger,
            admission,
            reads,
            metrics,
            tasks,
            within_s=receipts.ttl_s,
            labeler=labeler,
            clock=redis.now,
        )
        public[keys.READS] = reads
        public[keys.REJECTIONS] = rejections
        public[keys.FEEDBACK_STORE] = FeedbackStore(redis.queries, redis_keys, receipts.ttl_s)
        public[keys.TOKEN_COUNTER] = token_counter
        public[keys.STORED_RESPONSES] = StoredResponses(
            redis, RedisResponses(redis.queries, redis_keys), reads, metrics
        )
        public[keys.BUDGETS] = Budgets(redis.queries, redis_keys)
        admin[keys.BUDGETS] = budgets
        public[keys.SPEEDS] = LimitUsage(redis.queries, redis_keys, lease_s)
        admin[keys.DEADLINES] = deadlines
        admin[keys.WORKER] = worker or 1
        admin[keys.PROCESS_ID] = process_id
        admin[keys.BATCHER] = batcher
        admin[keys.USAGE_BOARD] = usage.workers
        admin[keys.LEDGER] = ledger
        admin[keys.LABEL_VALUES] = label_values
        admin[keys.CALLERS_LISTENER] = keys.CallersListener()
        public[keys.CALLERS] = Callers(policies, ring, follower, TokenCallers(policies, issuers))
        admin[keys.ISSUERS] = issuers
        admin[keys.KEYRING] = ring
        admin[keys.KEY_FOLLOWER] = follower
        admin[keys.KEYS_IN_REDIS] = keys_in_redis
        admin[keys.AUDIT] = AuditTrail(redis.commands, redis_keys.keyring().audit)
        startup = Readiness(redis, engines.by_name.values())
        for app in (public, admin):
            app[keys.POLICIES] = policies
            app[keys.COMPLETIONS] = completions
            app[keys.LABELER] = labeler
            app[keys.RECEIPTS] = store
            app[keys.USAGE_DATABASE] = usage.database
            # One reader for each listener, so that callers' queries do not delay operators.
            app[keys.USAGE] = usage.reader()
            app[keys.ADMISSION] = admission
            app[keys.METRICS] = metrics
            app[keys.ENGINES] = engines
            app[keys.REDIS] = redis
            app[STARTUP] = startup

        stack.push_async_callback(tasks.close)
        issuers.use(settings.identity)
        if watched is not None:
            admin[keys.RELOADER] = reloader = Reloader(watched.files, policies, metrics, watched.now)
            tasks.keep("reload", reloader.run())
            tasks.keep("config_edits", reloader.follow(watched.edits))
        batcher.start(tasks)
        tasks.keep("receipts", store.run())
        tasks.keep("spooler", spooler.run())
        tasks.keep("label_values", label_values.run())
        tasks.keep("answer_lengths", lengths.run())
        tasks.keep("guidance_times", keep_written(settings.data, times))
        tasks.keep("heartbeat", heartbeat.run())
        tasks.keep("sweeper", sweeper.run())
        tasks.keep("usage_board", usage.workers.follow(redis))
        tasks.keep("spend", spend.run())
        tasks.keep("outbox_trimmer", usage.trimmer.run())
        watch_budgets = BudgetMonitor(redis, budgets, policies, metrics, local_limits)
        tasks.keep("budgets", watch_budgets.run())
        signs = ProcessMetrics(metrics)
        tasks.keep("vitals", signs.run())
        if worker is not None:
            tasks.keep("gauges", metrics.publish())
        tasks.keep("loop_lag", signs.watch_loop())
        tasks.keep("uptime", UptimeReporter(redis, ledger_keys, engines, redis.now).run())
        tasks.keep("rejections", rejections.run())
        tasks.keep("redis", redis.watch())
        tasks.keep("keys", follower.follow())
        tasks.keep("key_uses", follower.report())
        tasks.keep("guidance_switches", switch_follower.follow())
        upkeep.start(batcher.processes)
        tasks.spawn("startup", startup.run())
        yield Gateway(public, admin, admission, batcher, store, spooler, tasks)
