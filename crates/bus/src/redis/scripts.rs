//! What has to happen on the server in one step.

use redis::Script;

pub(super) struct Scripts {
    pub claim_made: Script,
    pub open_claims: Script,
    pub count: Script,
    pub take: Script,
    pub lead: Script,
    pub post: Script,
    pub posts: Script,
    pub last: Script,
    pub tail: Script,
    pub trim: Script,
    pub lag: Script,
    pub progress: Script,
    pub history: Script,
}

impl Scripts {
    pub fn new() -> Self {
        Self {
            claim_made: Script::new(&format!("{SINCE}{CLAIM_MADE}")),
            open_claims: Script::new(&format!("{SINCE}{OPEN_CLAIMS}")),
            count: Script::new(COUNT),
            take: Script::new(TAKE),
            lead: Script::new(LEAD),
            post: Script::new(POST),
            posts: Script::new(POSTS),
            last: Script::new(&format!("{FIELDS}{LAST}")),
            tail: Script::new(&format!("{FIELDS}{BEFORE}{TAIL}")),
            trim: Script::new(&format!("{FIELDS}{BEFORE}{FLOOR}{TRIM}")),
            lag: Script::new(&format!("{FIELDS}{LAG}")),
            progress: Script::new(&format!("{FIELDS}{FLOOR}{HISTORY_OF}{PROGRESS}")),
            history: Script::new(&format!("{HISTORY_OF}return history_of(KEYS[1])")),
        }
    }
}

/// Since when (Unix milliseconds) no claim can have been lost, and the time now.
///
/// INVARIANT (claims): the note names the history of writes in which it was made. A server that was
/// started again, promoted or emptied has another history or no note: claims may be gone, so the
/// note starts anew, in the same step as the claim that found it out. It never goes back.
const SINCE: &str = r"
local function claims_since(note)
  local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
  if not history then return nil end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local known, since = string.match(redis.call('GET', note) or '', '^(%w+):(%d+)$')
  if known ~= history then
    since = math.max(now, tonumber(since or '0'))
    redis.call('SET', note, history .. ':' .. string.format('%.0f', since))
  end
  return tonumber(since), now
end
";

/// KEYS are the claim and the note; ARGV is how long it lasts and what must be later than the note.
const CLAIM_MADE: &str = r"
local since = claims_since(KEYS[2])
if not since then return redis.error_reply('ERR the history of the server is not known') end
if tonumber(ARGV[2]) <= since then return 0 end
if redis.call('SET', KEYS[1], 1, 'NX', 'PX', ARGV[1]) then return 1 end
return 0
";

/// Answers how many milliseconds ago the note was made; negative when the clock was set back.
const OPEN_CLAIMS: &str = r"
local since, now = claims_since(KEYS[1])
if not since then return redis.error_reply('ERR the history of the server is not known') end
return now - since
";

/// Gives out what is left, at most. A key without an end is one that lost it: it gets one.
const TAKE: &str = r"
local before = tonumber(redis.call('GET', KEYS[1]) or '0')
local granted = math.max(0, math.min(tonumber(ARGV[2]), tonumber(ARGV[3]) - before))
local total = before
if granted > 0 then total = redis.call('INCRBY', KEYS[1], granted) end
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  left = tonumber(ARGV[1])
  if total > 0 then redis.call('PEXPIRE', KEYS[1], left) end
end
return {granted, total, left}
";

/// The window starts with the first count and is not moved by later ones.
const COUNT: &str = r"
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return count
";

/// Only whoever leads may renew, and only nobody's lead may be taken.
const LEAD: &str = r"
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
";

/// The board is a sorted set of members by expiry; each note is a key that expires by itself.
const POST: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('PEXPIRE', KEYS[1], ARGV[3] * 10)
return 'OK'
";

const POSTS: &str = r"
local found = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local note = redis.call('GET', KEYS[1] .. ':' .. member)
  if note then found[#found + 1] = {member, note} end
end
return found
";

/// Turns the flat name-value list of an XINFO answer into a table.
const FIELDS: &str = r"
local function fields(flat)
  local named = {}
  for at = 1, #flat, 2 do named[flat[at]] = flat[at + 1] end
  return named
end
";

/// Compares stream ids as pairs of numbers.
const BEFORE: &str = r"
local function parts(id)
  local millis, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(millis), tonumber(seq)
end
local function before(a, b)
  local a_millis, a_seq = parts(a)
  local b_millis, b_seq = parts(b)
  return a_millis < b_millis or (a_millis == b_millis and a_seq < b_seq)
end
";

/// The newest id that the topic ever had, also when its entry was removed since.
const LAST: &str = r"
if redis.call('EXISTS', KEYS[1]) == 0 then return '0-0' end
return fields(redis.call('XINFO', 'STREAM', KEYS[1]))['last-generated-id']
";

/// INVARIANT (no silent gap): checks and reads in one step. KEYS are topics; ARGV is the limit,
/// the incarnation that the positions belong to (or nothing), then a position for each topic.
/// Answers {topic with a gap or '', entries or nil}.
///
/// A server that was started again may have lost entries after the position that nobody here has
/// read yet: only its run id shows that.
///
/// A position has no gap after it when nothing came since; when its entry is still there (what is
/// trimmed goes from the old end, so everything after it is there too); or, at the very start, when
/// nothing was ever removed. In every other case entries may be missing, also when the server came
/// back without the newest of its writes.
const TAIL: &str = r"
if ARGV[2] ~= '' then
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  if run_id ~= ARGV[2] then return {KEYS[1], false} end
end
local read = {'XREAD', 'COUNT', ARGV[1], 'STREAMS'}
for index, topic in ipairs(KEYS) do
  local at = ARGV[index + 2]
  local info = redis.pcall('XINFO', 'STREAM', topic)
  if info.err then
    if not string.find(info.err, 'no such key', 1, true) then return info end
    if at ~= '0-0' then return {topic, false} end
  else
    local stream = fields(info)
    local last = stream['last-generated-id']
    if before(last, at) then return {topic, false} end
    if last ~= at then
      local whole
      if at == '0-0' then
        whole = stream['entries-added'] == stream['length']
      else
        whole = #redis.call('XRANGE', topic, at, at) == 1
      end
      if not whole then return {topic, false} end
    end
  end
  read[#read + 1] = topic
end
for index = 1, #KEYS do read[#read + 1] = ARGV[index + 2] end
return {'', redis.call(unpack(read))}
";

/// The oldest entry that a group is not done with, or will be given next.
const FLOOR: &str = r"
local function floor_of(topic, group)
  if group['pending'] > 0 then
    return redis.call('XPENDING', topic, group['name'], '-', '+', 1)[1][1]
  end
  local millis, seq = string.match(group['last-delivered-id'], '^(%d+)-(%d+)$')
  return millis .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end
";

/// INVARIANT (history): a server that was started again or promoted has another run id; one that was
/// emptied has lost the note, and makes another.
const HISTORY_OF: &str = r"
local function history_of(key)
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  if not run_id then return redis.error_reply('ERR the history of the server is not known') end
  local note = redis.call('GET', key)
  if not note then
    local time = redis.call('TIME')
    note = time[1] .. '.' .. time[2]
    redis.call('SET', key, note)
  end
  return run_id .. ':' .. note
end
";

/// KEYS are the topic and the note of the history; ARGV is the group. Answers {history, floor of the
/// group or ''}.
const PROGRESS: &str = r"
local history = history_of(KEYS[2])
if type(history) ~= 'string' then return history end
if redis.call('EXISTS', KEYS[1]) == 1 then
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = fields(flat)
    if group['name'] == ARGV[1] then return {history, floor_of(KEYS[1], group)} end
  end
end
return {history, ''}
";

/// KEYS[1] is the topic; ARGV is the bound for stalled readers, then the groups that always hold.
/// Answers how many entries went. The bound advances at most 1,000 entries a call.
const TRIM: &str = r"
local topic, bound = KEYS[1], tonumber(ARGV[1])
if redis.call('EXISTS', topic) == 0 then return 0 end
local missing, always = 0, {}
for index = 2, #ARGV do
  always[ARGV[index]] = true
  missing = missing + 1
end
local required, others
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', topic)) do
  local group = fields(flat)
  local floor = floor_of(topic, group)
  if always[group['name']] then
    missing = missing - 1
    if not required or before(floor, required) then required = floor end
  elseif group['consumers'] > 0 then
    if not others or before(floor, others) then others = floor end
  end
end
if missing > 0 then return 0 end
local over = redis.call('XLEN', topic) - bound
if others and over > 0 then
  local oldest = redis.call('XRANGE', topic, '-', '+', 'COUNT', math.min(over, 1000) + 1)
  local reached = oldest[#oldest][1]
  if before(others, reached) then others = reached end
end
local floor = required or others
if others and before(others, floor) then floor = others end
if not floor then return 0 end
return redis.call('XTRIM', topic, 'MINID', floor)
";

/// Answers {undelivered, pending, oldest pending or '', oldest undelivered or ''}, or nothing when
/// there is no such group. Redis does not know the lag of a group once single entries were removed;
/// it is then counted, up to 100,000.
const LAG: &str = r"
local topic = KEYS[1]
if redis.call('EXISTS', topic) == 0 then return false end
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', topic)) do
  local group = fields(flat)
  if group['name'] == ARGV[1] then
    local after = '(' .. group['last-delivered-id']
    local undelivered = group['lag']
    if not undelivered then
      undelivered = #redis.call('XRANGE', topic, after, '+', 'COUNT', 100000)
    end
    local waiting, next = '', ''
    if group['pending'] > 0 then
      waiting = redis.call('XPENDING', topic, ARGV[1], '-', '+', 1)[1][1]
    end
    local fresh = redis.call('XRANGE', topic, after, '+', 'COUNT', 1)
    if #fresh > 0 then next = fresh[1][1] end
    return {undelivered, group['pending'], waiting, next}
  end
end
return false
";
