-- wrk script: posts the bodies of a folder in turn and prints one JSON line.
-- wrk -t1 -c64 -d10s -s post.lua URL -- FOLDER      FOLDER: 0.body, 1.body, … and headers
-- The requests are formatted once in init(), so that each costs the generator one copy.

local requests, n = {}, 0

function init(args)
  local folder = args[1]
  local headers = { ["Host"] = wrk.host .. ":" .. wrk.port }
  for line in io.lines(folder .. "/headers") do
    local name, value = line:match("^([^:]+): (.*)$")
    if name then headers[name] = value end
  end
  while true do
    local file = io.open(folder .. "/" .. #requests .. ".body", "rb")
    if not file then break end
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
end

function request()
  n = n % #requests + 1
  return requests[n]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%.3f,"p50_ms":%.3f,"p95_ms":%.3f,"p99_ms":%.3f,"max_ms":%.3f,' ..
    '"bad_status":%d,"bad_socket":%d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
    e.status, e.connect + e.read + e.write + e.timeout))
end
