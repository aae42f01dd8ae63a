"""Typed keys of the application and of requests. `app.py` sets their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from gateway.accounting.budgets import Budgets, LimitUsage
from gateway.accounting.engine_set import EngineSet
from gateway.accounting.label_values import LabelValues
from gateway.accounting.labels import Labeler
from gateway.accounting.ledger import Ledger
from gateway.accounting.store import ReceiptStore
from gateway.api.not_found import Endpoints
from gateway.batching.batcher import Batcher
from gateway.keys.audit import AuditTrail
from gateway.keys.callers import Callers
from gateway.keys.follower import KeyFollower
from gateway.keys.held import Keyring
from gateway.keys.identity.issuers import Issuers
from gateway.keys.redis_keyring import RedisKeyring
from gateway.pipeline.admission import Admission, Slots
from gateway.pipeline.completion import Completions
from gateway.pipeline.edge_guidance import EdgeGuidancePipeline
from gateway.pipeline.edge_reports import EdgeReports
from gateway.pipeline.embeddings import Embeddings
from gateway.pipeline.guidance_deadlines import GuidanceDeadlines
from gateway.pipeline.stored_responses import StoredResponses
from gateway.pipeline.token_count import TokenCounter
from gateway.policy.policies import Policies
from gateway.policy.reload import Reloader
from gateway.quality.feedback import FeedbackStore
from gateway.redis.client import RedisClient
from gateway.telemetry.metrics import Metrics
from gateway.usage.database_reader import DatabaseReader
from gateway.usage.reader import UsageReader
from gateway.usage.rejections import Rejections
from gateway.usage.state import WorkerStateReader

if TYPE_CHECKING:
    from gateway.accounting.verdict import Allowance
    from gateway.pipeline.completion import RequestState


class StaticDocument(NamedTuple):
    """A document that is the same for all callers, with its ETag."""

    body: bytes
    etag: str


@dataclass(slots=True)
class CallersListener:
    """The address of the callers' listener. Port 0 means that it is not bound yet."""

    host: str = ""
    port: int = 0


@dataclass(slots=True)
class RequestInfo:
    """Facts of a request that the middleware, the handler and a disconnect share."""

    id: str
    started: float  # time.perf_counter() seconds
    client_id: str | None = None  # X-Client-Request-Id
    tenant: str | None = None  # of the authenticated caller
    allowance: Allowance | None = None  # the remainder of the caller's limits; None: the caller is not known yet
    state: RequestState | None = None  # decides whether a request continues after a disconnect


POLICIES = web.AppKey("policies", Policies)
RELOADER = web.AppKey("reloader", Reloader)  # set if files are watched
CALLERS = web.AppKey("callers", Callers)
ISSUERS = web.AppKey("issuers", Issuers)
KEYRING = web.AppKey("keyring", Keyring)
KEY_FOLLOWER = web.AppKey("key_follower", KeyFollower)
KEYS_IN_REDIS = web.AppKey("keys_in_redis", RedisKeyring)
AUDIT = web.AppKey("audit", AuditTrail)
BUDGETS = web.AppKey("budgets", Budgets)
USAGE_DATABASE = web.AppKey("usage_database", DatabaseReader)
USAGE = web.AppKey("usage", UsageReader)
USAGE_BOARD = web.AppKey("usage_board", WorkerStateReader)
READS = web.AppKey("reads", Slots)
REJECTIONS = web.AppKey("rejections", Rejections)  # on the callers' listener only
TOKEN_COUNTER = web.AppKey("token_counter", TokenCounter)
SPEEDS = web.AppKey("speeds", LimitUsage)
CALLERS_LISTENER = web.AppKey("callers_listener", CallersListener)
COMPLETIONS = web.AppKey("completions", Completions)
DOCUMENT = web.AppKey("document", StaticDocument)
EMBEDDINGS = web.AppKey("embeddings", Embeddings)
HANDOVER = web.AppKey("handover", EdgeGuidancePipeline)
EDGE_ACCOUNTS = web.AppKey("edge_accounts", EdgeReports)
DEADLINES = web.AppKey("deadlines", GuidanceDeadlines)
LABELER = web.AppKey("labeler", Labeler)
LABEL_VALUES = web.AppKey("label_values", LabelValues)
LEDGER = web.AppKey("ledger", Ledger)
FEEDBACK_STORE = web.AppKey("feedback", FeedbackStore)
RECEIPTS = web.AppKey("receipts", ReceiptStore)
STORED_RESPONSES = web.AppKey("stored_responses", StoredResponses)
ADMISSION = web.AppKey("admission", Admission)
METRICS = web.AppKey("metrics", Metrics)
REDIS = web.AppKey("redis", RedisClient)
ENGINES = web.AppKey("engines", EngineSet)
WORKER = web.AppKey("worker", int)
PROCESS_ID = web.AppKey("process_id", str)  # the id of this process in Redis
ENDPOINTS = web.AppKey("endpoints", Endpoints)  # of this listener
BATCHER = web.AppKey("batcher", Batcher)

INFO = web.RequestKey("info", RequestInfo)
