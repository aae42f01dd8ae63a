"""Rename public classes to standard terms, each defined once in the project.

    python scripts/codemods/names.py

A class is renamed in the module that defines it and in every file that imports it from there, in code and in text.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tokenize
from io import StringIO
from pathlib import Path

CLASSES = {
    "accounting.alarm": {"Alarm": "BudgetAlerts"},
    "accounting.bounds": {"Extent": "TokenErrorBound"},
    "accounting.budget_watch": {"BudgetWatch": "BudgetMonitor"},
    "accounting.content": {"Content": "LoggedContent"},
    "accounting.draft": {"Call": "EngineCall", "Draft": "ReceiptBuilder"},
    "accounting.redis_ledger": {"Candidate": "AdmissionRequest", "Exchanged": "ExchangeResult"},
    "accounting.savings": {"Measured": "MeasuredBaseline"},
    "accounting.speeds": {"Speed": "RecentUsage", "Speeds": "LimitUsage"},
    "accounting.spool": {"Line": "SpoolLine", "Spooled": "SpoolEntry"},
    "accounting.sweeper": {"Sweeper": "IntentReaper"},
    "accounting.verdict": {
        "News": "ExchangeRequest",
        "AdmittedNews": "AdmissionEntry",
        "ChargeNews": "ChargeEntry",
        "SettledNews": "SettlementEntry",
        "VariantNews": "VariantEntry",
        "Told": "ExchangeReply",
        "Left": "LimitRemainder",
        "Verdict": "AdmissionVerdict",
    },
    "accounting.worst_case": {"Most": "MaxCost"},
    "admin.budget_views": {"Owner": "BudgetOwner"},
    "admin.key_views": {"Listed": "ListedKey"},
    "admin.login": {"Attempts": "LoginThrottle"},
    "admin.playground_bodies": {"Run": "PlaygroundRun", "WantedGuidance": "GuidanceOverride"},
    "api.completions": {"Path": "CompletionPipeline"},
    "api.decoding": {"Holder": "BodyHolder"},
    "api.keys": {"Document": "StaticDocument"},
    "api.openapi.shapes": {"Guidance": "GuidanceText"},
    "api.reading_on": {"ReadingOn": "DetachedHandlers"},
    "api.readiness": {"Startup": "Readiness"},
    "app": {"Watched": "WatchedFiles"},
    "backup.file": {"Header": "BackupHeader", "Verified": "VerifiedBackup", "Writer": "BackupWriter"},
    "backup.places": {"Found": "FoundKey", "Places": "KeyLocator"},
    "backup.putting": {"Present": "DeploymentContents", "Putting": "RestoreWriter"},
    "backup.records": {
        "Place": "KeyLocation",
        "Held": "KeyContents",
        "Entries": "StreamEntries",
        "Receipts": "ReceiptRecords",
        "Rows": "TableRows",
        "OldSums": "IncompleteSums",
        "Counts": "BackupCounts",
        "End": "EndRecord",
    },
    "backup.taking": {"Inventory": "KeyInventory", "Taking": "BackupReader"},
    "batching.board": {"Board": "Scheduler"},
    "batching.flights": {"Flights": "SingleFlight", "Landing": "FlightResult"},
    "batching.meter": {"Meter": "ThroughputMeter"},
    "batching.redis_board": {"RedisBoard": "RedisScheduler"},
    "batching.ticket": {
        "Broken": "TicketBroken",
        "Decision": "SchedulerDecision",
        "Limits": "TeacherLimits",
        "News": "SchedulerUpdate",
        "Refused": "TicketRefused",
        "Shared": "SharedGuidance",
    },
    "batching.turn": {"Queue": "TicketQueue", "Turn": "PermitWaiter"},
    "batching.view": {"BoardView": "SchedulerView", "Queues": "QueuesReply"},
    "batching.window": {
        "Opening": "BatchOpening",
        "Rate": "EventRate",
        "Teacher": "TeacherLoad",
        "Waiting": "WaitingTicket",
    },
    "capabilities.continuation": {"Probe": "ContinuationProbe"},
    "cli.eval_exemplars_print": {"Told": "SearchPrinter"},
    "cli.eval_exemplars_sitting": {"Sought": "ExemplarSession"},
    "cli.eval_progress": {"Bars": "ProgressBars", "Lines": "ProgressLines", "Speed": "TokenRate"},
    "cli.eval_run_sitting": {"Sitting": "EvalSession"},
    "cli.explain_print": {"About": "ExplainedRequest"},
    "cli.plan_measure": {"Speaks": "EngineProtocol"},
    "cli.restore": {"Only": "RestorePart"},
    "cli.schema": {"Which": "SchemaName"},
    "cli.usage": {"Format": "UsageFormat"},
    "cli.usage_db": {"Format": "ExportFormat"},
    "cli.usage_db_migrate": {"Compared": "PeriodComparison", "Figures": "PeriodFigures", "Migrated": "MigrationResult"},
    "config.limits": {"Period": "BudgetDuration"},
    "config.models": {"Batch": "BatchSettings", "Timeouts": "TimeoutSettings"},
    "config.scalars": {"Origin": "ValueOrigin", "Spelt": "TextPattern", "Wrong": "InvalidValue"},
    "config.sections": {
        "Admin": "AdminSettings",
        "Alerts": "AlertSettings",
        "Log": "LogSettings",
        "Receipts": "ReceiptSettings",
        "RequestLines": "RequestLogSettings",
        "Server": "ServerSettings",
    },
    "config.yaml_source": {"Shape": "StrictModel", "Source": "YamlSource"},
    "edge.guidance": {"Guidance": "EdgeGuidance"},
    "edge.http": {"JsonReply": "EdgeJsonReply"},
    "edge.link": {"Link": "GatewayLink"},
    "edge.placing": {"Sent": "EdgeStudentRequest"},
    "edge.relay": {"Relay": "EdgeRelay"},
    "edge.usage": {"Report": "UsageReport", "Usage": "DeviceUsage"},
    "engines.base": {"EmbeddingsReply": "EngineEmbeddings", "Usage": "TokenUsage"},
    "engines.control": {"Control": "ControlCall"},
    "engines.guard": {"UnderWay": "CallsInFlight"},
    "engines.http": {"Deadlines": "EngineDeadlines"},
    "engines.lists": {"Lists": "CallLists"},
    "engines.litellm_chat": {"Refused": "BodyUnsupported"},
    "engines.litellm_library": {"Library": "LiteLLMLibrary"},
    "engines.litellm_wire": {
        "Call": "WireCall",
        "Elsewhere": "ForeignHost",
        "TooLarge": "ReplyTooLarge",
        "Wire": "AsyncWire",
    },
    "engines.origin": {"Origin": "CallOrigin"},
    "engines.refusal": {"SaidError": "ReportedError"},
    "engines.renderers": {"Asks": "JsonPost", "Replied": "RenderedReply"},
    "engines.tgi_stream": {"Generated": "TgiStreamEnd"},
    "engines.watch": {"Pace": "ProbeInterval"},
    "errors": {
        "EngineCannot": "EngineUnsupported",
        "EngineGarbled": "EngineProtocolError",
        "EngineResting": "CircuitOpen",
        "EnoughHeard": "StopStream",
        "Mistake": "ConfigIssue",
    },
    "evaluation.advice.auto": {"Cell": "LengthOutcome", "Family": "LengthFamily", "Gave": "LengthResult"},
    "evaluation.advice.bounds": {"Claim": "BoundedMean"},
    "evaluation.advice.evidence": {"Candidate": "CandidateSetting"},
    "evaluation.advice.fit": {"Compared": "FitComparison", "Tables": "FitTables"},
    "evaluation.advice.recommend": {"HeldOut": "HeldOutResult", "Standing": "SettingResult"},
    "evaluation.advice.target": {"Panel": "AnswerPanel", "Target": "RecommendationTarget"},
    "evaluation.caller": {"Caller": "GatewayClient", "Heard": "ClientAnswer"},
    "evaluation.example": {"Score": "QuestionScorer"},
    "evaluation.generations": {"Recorded": "RecordingEngine", "Written": "TeacherText"},
    "evaluation.pair": {"Absent": "AbsentEngine"},
    "evaluation.patience": {"Patience": "StageRetries"},
    "evaluation.priming.exemplars": {"Candidate": "ExemplarCandidate", "Split": "QuestionSplit"},
    "evaluation.priming.finding": {
        "Checked": "SearchCheck",
        "Limits": "SearchLimits",
        "Listener": "SearchListener",
        "Measures": "SearchMeasures",
        "Result": "SearchReport",
    },
    "evaluation.priming.search": {
        "Difference": "ScoreDifference",
        "Found": "SearchResult",
        "Outcome": "TrialOutcome",
        "Scores": "MeasuredOutcomes",
        "Search": "ExemplarSearch",
        "Step": "SearchStep",
    },
    "evaluation.questions.data": {"Part": "QuestionRange"},
    "evaluation.questions.data_lines": {"WrongLine": "InvalidLine"},
    "evaluation.questions.problem_words": {"Draw": "ProblemRandom"},
    "evaluation.record": {"Stage": "StageRecord", "Verdict": "ScoredAnswer"},
    "evaluation.reporting.beside": {"Beside": "PublishedComparison"},
    "evaluation.reporting.comparison": {"Comparison": "SettingComparison", "Part": "ShareInterval"},
    "evaluation.reporting.figure_parts": {"LeftOut": "OmittedFigure"},
    "evaluation.reporting.frontier": {"Best": "BestSetting", "Point": "FrontierPoint"},
    "evaluation.reporting.published": {"Alone": "PublishedModel", "Pair": "PublishedPair"},
    "evaluation.reporting.rendering": {"Chapter": "ReportChapter"},
    "evaluation.reporting.report": {
        "Group": "ReportGroup",
        "Measured": "MeasuredCost",
        "Row": "ReportRow",
        "Section": "ReportSection",
    },
    "evaluation.reporting.tables": {"Table": "ReportTable"},
    "evaluation.reporting.times": {"Times": "QuestionTimes"},
    "evaluation.run": {"Progress": "RunProgress", "Work": "EvalWork"},
    "evaluation.staged": {"Answered": "QuestionAnswer", "Money": "TokenPrices"},
    "evaluation.summary": {"Summary": "SettingSummary"},
    "guidance.ending": {"Ending": "EndDetector"},
    "guidance.keep": {"Kept": "KeptGuidance"},
    "guidance.trim": {"Before": "TextContext", "Fence": "CodeFence", "Trimmed": "TrimmedText"},
    "keys.held": {"Terms": "KeyTerms"},
    "keys.redis_keyring": {"Expiry": "KeyExpiry", "Head": "HistoryHead", "Page": "KeyringChanges"},
    "local.generation": {"Generation": "LocalGeneration", "Token": "GeneratedToken"},
    "local.llama_client": {"Piece": "TextPiece"},
    "local.tgi_chat": {
        "ChatBody": "TgiChatBody",
        "CompletionBody": "TgiCompletionBody",
        "Message": "TgiMessage",
        "Replies": "TgiReplies",
        "StreamOptions": "TgiStreamOptions",
    },
    "local.tgi_request": {
        "GenerateBody": "TgiGenerateBody",
        "Grammar": "TgiGrammar",
        "Job": "TgiJob",
        "Limits": "TgiLimits",
        "Parameters": "TgiParameters",
    },
    "local.wheels": {"Wheels": "WheelSource"},
    "pipeline.completion": {"Opened": "RequestState", "Steps": "LoopSteps", "Visit": "RequestContext"},
    "pipeline.confidence_probe": {"Sounding": "ConfidenceProbe"},
    "pipeline.deadlines.times": {"Measured": "MeasuredTime"},
    "pipeline.edge_guidance": {"Handover": "EdgeGuidancePipeline"},
    "pipeline.edge_reports": {"EdgeAccounts": "EdgeReports"},
    "pipeline.embeddings": {"Vectors": "EmbeddingsAnswer"},
    "pipeline.generation": {"Generation": "GenerationTracker"},
    "pipeline.guidance_request": {"Hearing": "GuidanceStream", "Opening": "Guidance"},
    "pipeline.quality_sampler": {"Heard": "AnswerBuffer", "QualityGuard": "QualitySampler"},
    "pipeline.retries": {"Attempts": "Retries"},
    "pipeline.shadow": {"Shadows": "ShadowRequests"},
    "pipeline.student": {"Finisher": "StudentCall"},
    "pipeline.student_request": {"Sent": "StudentRequest"},
    "pipeline.teacher": {"Guide": "TeacherCall"},
    "planning.fleet": {"Demands": "FleetDemands", "Fleet": "ReplicaFleet"},
    "planning.measured": {"Heard": "StreamTiming"},
    "planning.plan": {"Load": "RequestLoad", "Plan": "CapacityPlan"},
    "planning.replica": {"Standing": "ReplicaLoad", "Work": "RequestWork"},
    "planning.rounds": {"Reading": "PrefillTime", "Rounds": "DecodeRounds"},
    "policy.allowed": {"Allowed": "EffectiveLimits"},
    "policy.book": {"PolicyBook": "PolicySet"},
    "policy.conditions": {"Bounds": "NumberRange", "Facts": "RequestFacts", "When": "RouteCondition"},
    "policy.constraints": {"Excluding": "ExcludingField"},
    "policy.files": {"Reading": "PolicyFolder"},
    "policy.length": {"Choice": "LengthChoice"},
    "policy.length_model": {"Figures": "FitFigures", "Predicted": "PredictedLength", "Provenance": "FitProvenance"},
    "policy.library": {"Library": "ProjectionRegistry"},
    "policy.named_files": {"Parsed": "ParsedFile"},
    "policy.overrides": {"Wanted": "RouteOverride"},
    "policy.pages": {"Page": "PolicyFile", "Pages": "PolicyFileCache"},
    "policy.policies": {"Edition": "PolicyEdition"},
    "policy.projections": {"Skip": "SkipRule"},
    "policy.question_features": {"Looks": "QuestionFeatures"},
    "policy.reload": {"Pace": "ReloadInterval", "Quiet": "EditDebounce"},
    "policy.resolve": {"FinisherPlan": "StudentPlan", "Look": "EngineSnapshot"},
    "policy.routing": {"Choice": "RouteChoice"},
    "policy.unguided": {"Verdict": "GuidanceEligibility"},
    "quality.book": {"Compared": "ComparisonScope", "QualityBook": "QualityStore", "Taken": "SampleBudget"},
    "quality.tally": {"Tally": "QualityTally"},
    "redis.client": {"Rest": "ReconnectBackoff"},
    "redis.script": {"Script": "RedisScript"},
    "runtime.addresses": {"Addresses": "GatewayAddresses"},
    "runtime.tasks": {"Tasks": "BackgroundTasks"},
    "scoring.numbers": {"Amount": "NumberValue"},
    "scoring.statements": {"Statement": "ResultStatement"},
    "server": {"FirstWord": "WorkerStarted"},
    "telemetry.process_metrics": {"VitalSigns": "ProcessMetrics", "Vitals": "ProcessSnapshot"},
    "telemetry.series": {"Series": "SeriesLimit"},
    "usage.counters": {"Tokens": "TokenSums"},
    "usage.database": {"Added": "WriteResult"},
    "usage.entries": {"Entry": "OutboxEntry"},
    "usage.feed": {"Taken": "FeedBatch"},
    "usage.parts": {"Part": "FoldedPeriod", "Parts": "FoldedPeriods"},
    "usage.receipts_reader": {"Where": "ReceiptFilter"},
    "usage.reconcile": {"Day": "ReconciledDay"},
    "usage.rests": {"Rests": "ThreadPauses"},
    "usage.rollup": {"Dims": "SumDimensions", "Row": "SumRow"},
    "usage.span": {"Asked": "RequestedRange", "Span": "UsageSpan"},
    "usage.sql": {"Sql": "UsageSql"},
    "usage.uptime": {"Minutes": "UptimeMinutes", "Watched": "EngineUptime"},
    "usage.usage": {"Ask": "UsageQuery", "Group": "UsageGroup", "Usage": "UsageResult"},
    "wiring": {"Traces": "TracingParts"},
}


def main() -> None:
    for name in subprocess.run(["git", "ls-files", "*.py"], check=True, capture_output=True, text=True).stdout.split():
        path = Path(name)
        if name.startswith("scripts/codemods/"):
            continue
        text = path.read_text("utf-8")
        changed = rewrite(text, _module_of(path))
        if changed != text:
            path.write_text(changed, "utf-8")


def rewrite(text: str, module: str) -> str:
    """Rename the classes that a file defines or imports."""
    names: dict[str, str] = (
        dict(CLASSES.get(module.removeprefix("gateway."), {})) if module.startswith("gateway") else {}
    )
    qualified: dict[str, str] = {}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not node.module or not node.module.startswith("gateway"):
            continue
        renames = CLASSES.get(node.module.removeprefix("gateway").removeprefix("."), {})
        for one in node.names:
            if one.name in renames:
                names[one.name] = renames[one.name]
            inner = f"{node.module}.{one.name}".removeprefix("gateway.")
            for old, new in CLASSES.get(inner, {}).items():
                qualified[f"{one.asname or one.name}.{old}"] = f"{one.asname or one.name}.{new}"
    if not names and not qualified:
        return text
    return _renamed(text, names, qualified)


def _renamed(text: str, names: dict[str, str], qualified: dict[str, str]) -> str:
    lines = text.splitlines(keepends=True)
    edits: list[tuple[int, int, str, str]] = []
    before = dotted = ""
    for token in tokenize.generate_tokens(StringIO(text).readline):
        (row, column), string = token.start, token.string
        if token.type == tokenize.NAME:
            if before == "." and f"{dotted}.{string}" in qualified:
                edits.append((row, column, string, qualified[f"{dotted}.{string}"].rpartition(".")[2]))
            elif before != "." and string in names:
                edits.append((row, column, string, names[string]))
            if before != ".":
                dotted = string
        before = string if token.type in (tokenize.OP, tokenize.NAME) else before
    for row, column, old, new in sorted(set(edits), reverse=True):
        line = lines[row - 1]
        assert line[column : column + len(old)] == old, (row, column, old, line)
        lines[row - 1] = line[:column] + new + line[column + len(old) :]
    text = "".join(lines)
    for old, new in names.items():  # in docstrings, and in aliases that are strings
        text = re.sub(rf'(?m)^(\w+: TypeAlias = ".*)\b{old}\b', rf"\1{new}", text)
        text = re.sub(rf"(?<=`){old}(?=[`.(])", new, text)
    return text


def _module_of(path: Path) -> str:
    parts = list(path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


if __name__ == "__main__":
    main()
