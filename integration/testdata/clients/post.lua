-- wrk posts a body of 1 MiB and counts the answers that do not hold its checksum.
local want = os.getenv("WANT")
local threads = {}

function setup(thread)
	table.insert(threads, thread)
end

function init()
	local bytes = {}
	for i = 0, 250 do
		bytes[i + 1] = string.char(i)
	end
	wrk.method = "POST"
	wrk.body = string.sub(string.rep(table.concat(bytes), 4200), 1, 1048576)
	wrong = 0
end

function response(status, headers, body)
	if status ~= 200 or body ~= want .. "\n" then
		wrong = wrong + 1
	end
end

function done(summary)
	local all = 0
	for _, thread in ipairs(threads) do
		all = all + thread:get("wrong")
	end
	io.write("wrong answers: " .. all .. "\n")
end
