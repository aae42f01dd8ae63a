"""What handlers can reach, by typed key. `app.py` fills them."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from gateway.admission import Admission
from gateway.audit import AuditTrail
from gateway.batching.batcher import Batcher
from gateway.completion import Completions, Opened
from gateway.deadlines.deadlines import GuidanceDeadlines
from gateway.disconnects import Disconnects
from gateway.edge_accounts import EdgeAccounts
from gateway.embedding import Embeddings
from gateway.engines.guard import GuardedEngine
from gateway.handover import Handover
from gateway.keyring.callers import Callers
from gateway.keyring.follower import KeyFollower
from gateway.keyring.redis_keyring import RedisKeyring
from gateway.keyring.ring import Keyring
from gateway.ledger.budgets import Budgets
from gateway.ledger.ledger import Ledger
from gateway.ledger.speeds import Speeds
from gateway.ledger.store import ReceiptStore
from gateway.ledger.verdict import Allowance
from gateway.metrics import Metrics
from gateway.policy.policies import Policies
from gateway.policy.reload import Reloader
from gateway.redis_client import RedisClient
from gateway.sections import Defaults
from gateway.slots import Slots
from gateway.startup import Startup
from gateway.usage.reader import UsageReader
from gateway.usage.state import WorkerBoard
from gateway.usage.sums_reader import SumsReader
from gateway.usage.uptime_reader import UptimeReader


@dataclass(frozen=True, slots=True)
class Document:
    """Bytes that are the same for everybody, and what names them."""

    body: bytes
    etag: str


@dataclass(slots=True)
class CallersListener:
    """Where callers are listened to. Port 0: nowhere yet."""

    host: str = ""
    port: int = 0


POLICIES = web.AppKey("policies", Policies)
RELOADER = web.AppKey("reloader", Reloader)  # there where files are watched
CALLERS = web.AppKey("callers", Callers)
KEYRING = web.AppKey("keyring", Keyring)
KEY_FOLLOWER = web.AppKey("key_follower", KeyFollower)
KEYS_IN_REDIS = web.AppKey("keys_in_redis", RedisKeyring)
AUDIT = web.AppKey("audit", AuditTrail)
BUDGETS = web.AppKey("budgets", Budgets)
SUMS = web.AppKey("sums", SumsReader)
USAGE = web.AppKey("usage", UsageReader)
UPTIME = web.AppKey("uptime", UptimeReader)
USAGE_BOARD = web.AppKey("usage_board", WorkerBoard)
READS = web.AppKey("reads", Slots)
SPEEDS = web.AppKey("speeds", Speeds)
DEFAULTS = web.AppKey("defaults", Defaults)
CALLERS_LISTENER = web.AppKey("callers_listener", CallersListener)
COMPLETIONS = web.AppKey("completions", Completions)
DOCUMENT = web.AppKey("document", Document)
DISCONNECTS = web.AppKey("disconnects", Disconnects)
EMBEDDINGS = web.AppKey("embeddings", Embeddings)
HANDOVER = web.AppKey("handover", Handover)
EDGE_ACCOUNTS = web.AppKey("edge_accounts", EdgeAccounts)
DEADLINES = web.AppKey("deadlines", GuidanceDeadlines)
LEDGER = web.AppKey("ledger", Ledger)
RECEIPTS = web.AppKey("receipts", ReceiptStore)
ADMISSION = web.AppKey("admission", Admission)
METRICS = web.AppKey("metrics", Metrics)
REDIS = web.AppKey("redis", RedisClient)
ENGINES = web.AppKey("engines", dict[str, GuardedEngine])
WORKER = web.AppKey("worker", int)
OWNER = web.AppKey("owner", str)  # this process's name in Redis
TRY = web.AppKey("try", str)  # what a listener names to who asks for something that it has not
STARTUP = web.AppKey("startup", Startup)
BATCHER = web.AppKey("batcher", Batcher)

REQUEST_ID = web.RequestKey("request_id", str)
CLIENT_REQUEST_ID = web.RequestKey("client_request_id", str)  # the caller's own name for it
ALLOWANCE = web.RequestKey("allowance", Allowance)  # what the caller has left of its limits
OPENED = web.RequestKey("opened", Opened)  # what a disconnect is decided by
STARTED = web.RequestKey("started", float)  # time.perf_counter() seconds
