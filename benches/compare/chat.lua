-- The load: one 1 KB chat prompt with a key, again and again; at the end one line for measure.py.
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("KEY")
wrk.headers["Content-Type"] = "application/json"
local head = '{"model":"demo","max_tokens":16,"temperature":0.7,"messages":[{"role":"user","content":"'
local tail = '"}]}'
wrk.body = head .. string.rep("word ", 300):sub(1, 1024 - #head - #tail) .. tail

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("measured %d %d %d %d %d\n", summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
