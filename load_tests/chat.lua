-- Requests of an API for wrk, and its figures as one line of JSON:
--   wrk -t1 ... -s chat.lua URL -- chat|responses|messages MODEL json|stream FIRST PAUSE_MS ["HEADER: VALUE"]...
--
-- No two prompts are the same: they are numbered upwards from FIRST. A gateway may keep an answer, or the guidance for
-- it, and share it between requests that ask the same; here every guided request must make both of its calls.

local PLACE = "0000000000"
local RULE = "You are a helpful assistant."
local QUESTION = "This is question " .. PLACE .. ": what is it that I would like to know?"
-- Fields of the same conversation and limits in each API.
local FIELDS = {
  chat = '"messages":[{"role":"system","content":"' .. RULE .. '"},{"role":"user","content":"' .. QUESTION .. '"}],'
    .. '"max_tokens":50',
  responses = '"instructions":"' .. RULE .. '","input":"' .. QUESTION .. '","max_output_tokens":50',
  messages = '"system":"' .. RULE .. '","messages":[{"role":"user","content":"' .. QUESTION .. '"}],"max_tokens":50',
}
local before, after, number

function init(args)
  local api, model, kind = args[1], args[2], args[3]
  number = tonumber(args[4])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  local pause_ms = tonumber(args[5])
  if pause_ms > 0 then
    math.randomseed(number)
    -- wrk calls `delay` before each request. Pauses of an exponential distribution make random arrivals.
    function delay() return math.floor(-math.log(1 - math.random()) * pause_ms + 0.5) end
  end
  for position = 6, #args do
    local name, value = args[position]:match("^([^:]+): (.*)$")
    wrk.headers[name] = value
  end
  wrk.body = '{"model":"' .. model .. '",' .. FIELDS[api] .. ',"temperature":0.7'
    .. (kind == "stream" and ',"stream":true' or "") .. "}"
  -- The number is as long as the place kept for it, so only the number changes from one request to the next.
  local whole = wrk.format()
  local first, last = whole:find(PLACE, 1, true)
  before, after = whole:sub(1, first - 1), whole:sub(last + 1)
end

function request()
  number = number + 1
  return before .. string.format("%010d", number) .. after
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'figures {"requests":%d,"duration_us":%d,"p50_us":%.1f,"p99_us":%.1f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration, latency:percentile(50.0), latency:percentile(99.0), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout
  ))
end
