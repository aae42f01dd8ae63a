"""The composition root: the only place that constructs. What it opens it closes, in the same function."""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from gateway.admin.assets import ASSETS, Assets
from gateway.admin.auth import needs_key
from gateway.admin.login import ATTEMPTS, Attempts
from gateway.admin.overview import OVERVIEW, Overview
from gateway.admin.routes import OPEN_ROUTES as OPEN_ADMIN_ROUTES
from gateway.admin.routes import ROUTES as ADMIN_ROUTES
from gateway.admin.session import SESSIONS, Sessions
from gateway.admission import Admission
from gateway.audit import AuditTrail
from gateway.batching.batcher import Batcher
from gateway.batching.flights import Flights
from gateway.batching.ticket import Limits
from gateway.completion import Completions
from gateway.embedding import Embeddings
from gateway.engines.build import build
from gateway.engines.watch import watch
from gateway.finishing import Finisher
from gateway.keyring.callers import Callers
from gateway.keyring.follower import KeyFollower
from gateway.keyring.redis_keyring import RedisKeyring
from gateway.keyring.ring import Keyring
from gateway.ledger.alarm import Alarm
from gateway.ledger.budgets import Budgets
from gateway.ledger.heartbeat import Heartbeat
from gateway.ledger.ledger import Ledger
from gateway.ledger.redis_ledger import RedisLedger
from gateway.ledger.roller import Roller
from gateway.ledger.rollups import Retention, Rollups
from gateway.ledger.speeds import Speeds
from gateway.ledger.store import ReceiptStore
from gateway.ledger.sweeper import Sweeper
from gateway.ledger.usage_reader import UsageReader
from gateway.metrics import Metrics
from gateway.opening import Guide
from gateway.policy.policies import Policies
from gateway.policy.reload import Reloader
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys
from gateway.shadowing import Shadows
from gateway.tasks import Tasks
from gateway.web import keys
from gateway.web.error_body import errors_as_openai
from gateway.web.headers import name_reply
from gateway.web.openapi.document import document
from gateway.web.routes import ROUTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from gateway.config import Settings
    from gateway.engines.base import Engine
    from gateway.model_settings import ModelSettings
    from gateway.policy.book import PolicyBook
    from gateway.policy.files import PolicyFiles

log = structlog.get_logger()

MIDDLEWARES = [errors_as_openai]

_ADMIN_BODY_BYTES = 65_536

# How long an engine may keep the gateway from being ready, by not answering its first probe.
_FIRST_PROBES_S = 5.0
_MAX_SHADOWS = 64


@dataclass(frozen=True, slots=True)
class Gateway:
    """One process's parts that serving needs."""

    public: web.Application
    admin: web.Application
    admission: Admission
    batcher: Batcher
    store: ReceiptStore
    tasks: Tasks


@dataclass(frozen=True, slots=True)
class Watched:
    """The files that the settings and the book came from, to be followed.

    Attributes:
        now: set by whoever wants them read at once.
    """

    files: PolicyFiles
    now: asyncio.Event


@asynccontextmanager
async def gateway(
    settings: Settings, book: PolicyBook, redis_url: str, worker: int | None = None, watched: Watched | None = None
) -> AsyncIterator[Gateway]:
    """Build a gateway and everything under it; close it all on leaving. Raises StartupError without Redis."""
    async with AsyncExitStack() as stack:
        metrics = Metrics(worker, settings.metrics.max_tenants)
        tasks = Tasks()
        policies = Policies(book, watched.files.edition() if watched is not None else None)
        _name_series(metrics, policies.book)
        policies.on_change(partial(_name_series, metrics))
        redis_keys = RedisKeys(settings.redis.prefix)
        redis = RedisClient(redis_url, timeout_s=settings.redis.timeout_s, metrics=metrics)
        stack.push_async_callback(redis.close)
        await redis.require()
        engines = await build(settings.models, policies, metrics)
        for engine in engines.values():
            stack.push_async_callback(engine.close)
        owner = f"{socket.gethostname()}-{secrets.token_hex(6)}"
        batcher = Batcher(
            redis,
            redis_keys,
            owner=owner,
            limits={
                model.name: _limits(model, engines[model.name], settings.redis.lease_s) for model in settings.models
            },
            on_failure=settings.redis.on_failure,
            metrics=metrics,
        )
        lease_s = settings.redis.lease_s
        receipts, kept = settings.receipts, settings.rollups
        in_redis = RedisLedger(redis.commands, redis_keys, owner, receipts.ttl_s, lease_s, receipts.max_buffered)
        retention = Retention(kept.minutes_s, kept.hours_s, kept.days_s, kept.max_rows)
        rollups = Rollups(redis.commands, redis_keys, retention)
        roller = Roller(redis, redis.commands, redis_keys, rollups, owner)
        alarm = Alarm(*_webhook(settings), metrics=metrics, tasks=tasks)
        stack.push_async_callback(alarm.close)
        store = ReceiptStore(redis, in_redis, on_event=alarm.tell, metrics=metrics)
        ledger = Ledger(
            store,
            prices={model.name: model.price for model in settings.models},
            encodings={model.name: model.tokenizer for model in settings.models},
            owner=owner,
            metrics=metrics,
            tasks=tasks,
        )
        heartbeat = Heartbeat(
            redis, redis_keys.heartbeat(owner), lease_s=lease_s, beaten=store.beat, lapsed=store.tell_again
        )
        sweeper = Sweeper(
            redis,
            in_redis,
            ledger,
            holds=store.holds,
            tenants=policies.tenants,
            lease_s=lease_s,
        )
        admission = Admission(
            settings.server.max_in_flight,
            ledger,
            metrics,
            defaults=settings.defaults,
            required=settings.redis.on_failure == "reject",
        )
        guide = Guide(engines, batcher, Flights(tasks), metrics, tasks)
        finisher = Finisher(engines, metrics)
        completions = Completions(
            guide=guide,
            finisher=finisher,
            shadows=Shadows(guide, finisher, admission, metrics, tasks, most=_most_shadows(settings)),
            admission=admission,
            ledger=ledger,
        )

        ring, keys_in_redis = Keyring(), RedisKeyring(redis.commands, redis_keys)
        follower = KeyFollower(redis, keys_in_redis, ring)
        await follower.start()

        public = web.Application(client_max_size=settings.server.max_body_bytes, middlewares=MIDDLEWARES)
        public.add_routes(ROUTES)
        public[keys.TRY] = "POST /v1/chat/completions"
        sessions = Sessions(settings.admin.key)
        admin = web.Application(
            client_max_size=_ADMIN_BODY_BYTES,
            middlewares=[*MIDDLEWARES, needs_key(sessions, OPEN_ADMIN_ROUTES)],
        )
        admin.add_routes(ADMIN_ROUTES)
        admin[keys.TRY] = "GET /readyz"
        admin[SESSIONS] = sessions
        admin[OVERVIEW] = Overview(rollups, {model.name: model.batch.max_size for model in settings.models})
        admin[ATTEMPTS] = Attempts()
        admin[ASSETS] = await asyncio.to_thread(Assets.read)
        public[keys.DOCUMENT] = document(ROUTES)
        public[keys.EMBEDDINGS] = Embeddings(engines=engines, admission=admission, ledger=ledger, metrics=metrics)
        public[keys.SPEEDS] = Speeds(redis.commands, redis_keys, lease_s)
        admin[keys.WORKER] = worker or 1
        admin[keys.OWNER] = owner
        admin[keys.BATCHER] = batcher
        admin[keys.LEDGER] = ledger
        admin[keys.LEASE_S] = lease_s
        admin[keys.CALLERS_LISTENER] = keys.CallersListener()
        public[keys.CALLERS] = Callers(policies, ring, follower)
        admin[keys.KEYRING] = ring
        admin[keys.KEY_FOLLOWER] = follower
        admin[keys.KEYS_IN_REDIS] = keys_in_redis
        admin[keys.AUDIT] = AuditTrail(redis.commands, redis_keys.keyring().audit)
        for app in (public, admin):
            app.on_response_prepare.append(name_reply)
            app[keys.POLICIES] = policies
            app[keys.COMPLETIONS] = completions
            app[keys.RECEIPTS] = store
            app[keys.DEFAULTS] = settings.defaults
            app[keys.ROLLUPS] = rollups
            # One each, so that callers who ask often take no operator's turn.
            app[keys.USAGE] = UsageReader(rollups, retention)
            app[keys.BUDGETS] = Budgets(redis.commands, redis_keys)
            app[keys.ADMISSION] = admission
            app[keys.METRICS] = metrics
            app[keys.ENGINES] = engines
            app[keys.REDIS] = redis
            app[keys.READY_BY] = asyncio.get_running_loop().time() + _FIRST_PROBES_S

        role_changed = _when_role_changes(engines, policies)
        stack.push_async_callback(tasks.close)
        if watched is not None:
            reloader = Reloader(watched.files, policies, metrics, watched.now)
            admin[keys.RELOADER] = reloader
            tasks.keep("reload", reloader.run())
        batcher.start(tasks)
        tasks.keep("receipts", store.run())
        tasks.keep("heartbeat", heartbeat.run())
        tasks.keep("sweeper", sweeper.run())
        tasks.keep("roller", roller.run())
        tasks.keep("redis", redis.watch())
        tasks.keep("keys", follower.follow())
        tasks.keep("key_uses", follower.tell())
        for engine in engines.values():
            tasks.keep(f"engine:{engine.name}", watch(engine, metrics, at_once=role_changed[engine.name]))
        yield Gateway(public, admin, admission, batcher, store, tasks)


def _most_shadows(settings: Settings) -> int:
    """How many shadows of requests may be under way: never so many that callers would miss their places."""
    return min(_MAX_SHADOWS, max(1, settings.server.max_in_flight // 4))


def _name_series(metrics: Metrics, book: PolicyBook) -> None:
    """In the order of the files, so that all workers name the same tenants."""
    for policy in book.policies:
        metrics.series.name(policy.tenant, (route.model for route in policy.routes))


def _when_role_changes(engines: Iterable[str], policies: Policies) -> dict[str, asyncio.Event]:
    """For each engine what is set when an edit makes it one that only embeds, or no longer: it is to be probed anew."""
    embeds = {name: policies.book.only_embeds(name) for name in engines}
    changed = {name: asyncio.Event() for name in embeds}

    def look(book: PolicyBook) -> None:
        for name, event in changed.items():
            if (now := book.only_embeds(name)) != embeds[name]:
                embeds[name] = now
                event.set()

    policies.on_change(look)
    return changed


def _webhook(settings: Settings) -> tuple[str | None, str | None]:
    url, secret = settings.alerts.webhook, settings.alerts.webhook_secret
    return url.get_secret_value() if url else None, secret.get_secret_value() if secret else None


def _limits(model: ModelSettings, engine: Engine, lease_s: float) -> Callable[[], Limits]:
    """What the teacher takes: the configuration's limits, and never more than the engine says it takes."""
    configured = Limits(
        max_in_flight=model.max_concurrency,
        max_size=model.batch.max_size,
        max_prompt_tokens=model.batch.max_prompt_tokens,
        low_water=model.batch.low_water,
        max_queue=model.batch.max_queue,
        max_cache_bytes=model.guidance_cache_bytes,
        lease_s=lease_s,
    )

    def now() -> Limits:
        own = engine.state.max_concurrency
        return configured if own is None or own >= configured.max_in_flight else configured.of_cap(own)

    return now
