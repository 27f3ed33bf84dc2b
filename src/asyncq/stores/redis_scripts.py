"""The scripts that run inside Redis. Each is one step for all other clients.

Numbers of Lua are exact up to 2^53, which microseconds since the epoch are below until the year 2255; versions are
compared as texts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

__all__ = ["FORGET", "PUT", "READ", "Script"]


@dataclass(frozen=True)
class Script:
    """A script, and the name that Redis gives it."""

    text: str

    @cached_property
    def sha(self) -> str:
        """Its SHA-1, by which Redis knows it."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


READ = Script("""
local prefix, count, fields, found = ARGV[1], tonumber(ARGV[2]), {}, {}
for index = 1, count do fields[index] = ARGV[2 + index] end
for index = 3 + count, #ARGV do
  found[#found + 1] = redis.call('HMGET', prefix .. ':task:' .. ARGV[index], unpack(fields))
end
return found
""")
"""Return fields of records: their number, their names, then the ids. A command for each would cost the client more."""

PUT = Script("""
local prefix, taken = ARGV[1], {}
for first = 2, #ARGV, 11 do
  local id, replaced, version, created = ARGV[first], ARGV[first + 1], ARGV[first + 2], ARGV[first + 3]
  local expires, data, has_result, result = ARGV[first + 4], ARGV[first + 5], ARGV[first + 6], ARGV[first + 7]
  local task, state, updated = ARGV[first + 8], ARGV[first + 9], ARGV[first + 10]
  local key = prefix .. ':task:' .. id
  local old = redis.call('HMGET', key, 'version', 'created', 'task', 'state')
  if (old[1] or '') ~= replaced then
    taken[#taken + 1] = 0
  else
    local entry = created .. ':' .. id
    local before = old[1] and (old[2] .. ':' .. id)
    local is_new = before ~= entry
    if before and (is_new or old[4] ~= state) then
      redis.call('ZREM', prefix .. ':state:' .. old[4], before)
    end
    if before and is_new then
      redis.call('ZREM', prefix .. ':all', before)
      redis.call('ZREM', prefix .. ':expiring', before)
    end
    if before and old[3] and (is_new or old[3] ~= task) then
      redis.call('ZREM', prefix .. ':of:' .. old[3], before)
    end
    local fields = {'version', version, 'created', created, 'data', data, 'state', state, 'updated', updated}
    local function add(name, value)
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
    if has_result == '1' then add('result', result) end
    if task ~= '' then add('task', task) end
    if expires ~= '' then add('expires', expires) end
    if before then redis.call('DEL', key) end
    redis.call('HSET', key, unpack(fields))
    if task ~= '' and (is_new or old[3] ~= task) then
      redis.call('ZADD', prefix .. ':of:' .. task, 0, entry)
      redis.call('SADD', prefix .. ':names', task)
    end
    if is_new then redis.call('ZADD', prefix .. ':all', 0, entry) end
    if is_new or old[4] ~= state then redis.call('ZADD', prefix .. ':state:' .. state, 0, entry) end
    if expires ~= '' then
      local at = string.format('%.0f', math.ceil(tonumber(expires) / 1000))
      redis.call('PEXPIREAT', key, at)
      redis.call('ZADD', prefix .. ':expiring', at, entry)
    elseif not is_new then
      redis.call('ZREM', prefix .. ':expiring', entry)
    end
    redis.call('PUBLISH', prefix .. ':changed', id)
    taken[#taken + 1] = 1
  end
end
return taken
""")
"""Put records: for each the arguments of `asyncq.stores.redis._arguments`. Returns 1 for those that were put."""

FORGET = Script("""
local prefix, now, ended_before, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 0
local states = {'queued', 'scheduled', 'started', 'retrying', 'succeeded', 'failed', 'cancelled', 'expired'}
for index = 4, #ARGV do
  local entry = ARGV[index]
  local colon = string.find(entry, ':', 1, true)
  local created, key = string.sub(entry, 1, colon - 1), prefix .. ':task:' .. string.sub(entry, colon + 1)
  local found = redis.call('HMGET', key, 'created', 'task', 'state', 'updated', 'expires')
  local state = found[3]
  local present = found[1] == created
  local expired = present and found[5] and tonumber(found[5]) <= now
  local ended = present and (state == 'succeeded' or state == 'failed' or state == 'cancelled' or state == 'expired')
  if not present or expired or (ended_before and ended and tonumber(found[4]) < ended_before) then
    redis.call('ZREM', prefix .. ':all', entry)
    redis.call('ZREM', prefix .. ':expiring', entry)
    for _, name in ipairs(states) do redis.call('ZREM', prefix .. ':state:' .. name, entry) end
    if present then
      if found[2] then redis.call('ZREM', prefix .. ':of:' .. found[2], entry) end
      redis.call('DEL', key)
    else
      for _, task in ipairs(redis.call('SMEMBERS', prefix .. ':names')) do
        redis.call('ZREM', prefix .. ':of:' .. task, entry)
      end
    end
    count = count + 1
  end
end
return count
""")
"""Remove those of the given entries that have expired, with what their records have left, and, where a time is given,
those that ended before it. Returns how many."""
