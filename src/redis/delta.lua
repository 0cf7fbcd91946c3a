-- KEYS: the dict, its mark.
-- ARGV: the mark and the number of fields that must be there, those that will be, life in ms,
--       how many fields go, these fields, then (field, value) pairs.
-- Compare and set: 'lost' when another writer was here since, 'broken' when the dict is not what its mark says.
local mark, fields, next_mark, next_fields, ttl_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5]
if read_mark(KEYS[2]) ~= mark then return 'lost' end
if count_fields(KEYS[1]) ~= fields then return 'broken' end
local first_pair = 7 + tonumber(ARGV[6])
-- Many at once: a call costs more than a field. Lua takes no more than some thousands of arguments.
local function call_with(command, first, last)
  for index = first, last, 1000 do
    redis.call(command, KEYS[1], unpack(ARGV, index, math.min(index + 999, last)))
  end
end
call_with('HDEL', 7, first_pair - 1)
call_with('HSET', first_pair, #ARGV)
if count_fields(KEYS[1]) ~= next_fields then
  redis.call('DEL', KEYS[2])
  return 'broken'
end
write_mark(KEYS[2], next_mark, ttl_ms)
redis.call('PEXPIRE', KEYS[1], ttl_ms)
return 'applied'
