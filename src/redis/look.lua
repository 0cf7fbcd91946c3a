-- KEYS: the dict, its mark. Changes nothing.
-- Answers the mark, the number of fields, and the shorter life of the two in ms (-1: one is without end).
local life = redis.call('PTTL', KEYS[2])
local dict_life = redis.call('PTTL', KEYS[1])
if dict_life ~= -2 and (life == -2 or dict_life < life) then life = dict_life end
return {read_mark(KEYS[2]), count_fields(KEYS[1]), life}
