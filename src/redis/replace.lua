-- KEYS: the dict, its mark, the new dict.
-- ARGV: the mark that must be there ('*': any), the mark and the number of fields that will be, life in ms.
-- Compare and set: 'lost' when another writer was here since, 'broken' when the new dict is not complete.
local mark, next_mark, next_fields, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
if mark ~= '*' and read_mark(KEYS[2]) ~= mark then return 'lost' end
if count_fields(KEYS[3]) ~= next_fields then return 'broken' end
-- Freed beside Redis' own thread, whatever its size.
redis.call('UNLINK', KEYS[1])
if next_fields > 0 then
  redis.call('RENAME', KEYS[3], KEYS[1])
  redis.call('PEXPIRE', KEYS[1], ttl_ms)
end
write_mark(KEYS[2], next_mark, ttl_ms)
return 'applied'
