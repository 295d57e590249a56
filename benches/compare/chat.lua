-- The load: one 1 KB chat prompt with a key, again and again; at the end one line for measure.py. $LOAD says which: "plain",
-- "hit" (one whose answer may be kept) or "miss" (a different one each time).
local load = os.getenv("LOAD") or "plain"
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("KEY")
wrk.headers["Content-Type"] = "application/json"
local asks = load == "plain" and '{"model":"demo","max_tokens":16,"temperature":0.7' or '{"model":"kept","max_tokens":16,"temperature":0'
local head = asks .. ',"messages":[{"role":"user","content":"'
local tail = '"}]}'
wrk.body = head .. string.rep("word ", 300):sub(1, 1024 - #head - #tail) .. tail

if load == "miss" then
  local rest, count = wrk.body:sub(#head + 21), os.time() * 1000000
  function request()
    count = count + 1
    return wrk.format(nil, nil, nil, string.format("%s%20d%s", head, count, rest))
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("measured %d %d %d %d %d\n", summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
