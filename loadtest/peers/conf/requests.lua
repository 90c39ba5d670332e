-- Sends the requests of a file in turn. Each line is a path, a tab and a bearer
-- token or nothing. They are formatted once: building them is not what is measured.
local requests, at = {}, 0

function init(args)
  for line in io.lines(args[1]) do
    local path, token = line:match("^([^\t]*)\t(.*)$")
    local headers = { Host = wrk.headers["Host"] }
    if token ~= "" then
      headers["Authorization"] = "Bearer " .. token
    end
    requests[#requests + 1] = wrk.format("GET", path, headers)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end
