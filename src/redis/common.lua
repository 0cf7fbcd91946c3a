-- The mark of what was written last; '' when there is none.
local function read_mark(at)
  if redis.call('TYPE', at).ok ~= 'string' then return '' end
  return redis.call('GET', at)
end

-- How many fields the dict has; -1: it is something else than a hash.
local function count_fields(dict)
  local kind = redis.call('TYPE', dict).ok
  if kind == 'none' then return 0 end
  if kind ~= 'hash' then return -1 end
  return redis.call('HLEN', dict)
end

local function write_mark(at, mark, ttl_ms)
  if mark == '' then
    redis.call('DEL', at)
  else
    redis.call('SET', at, mark, 'PX', ttl_ms)
  end
end
