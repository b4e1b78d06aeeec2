-- Whether requests could still commit: asked before an act whose undoing would cost a running session.
-- KEYS  1 epoch  2 gateway  3… result keys
-- ARGV  1 epoch of this writer  2 its token  3 the sequence as it knows it  4… deadlines in ms, 0 for none
-- Returns {server time in ms, sequence, then for each request {verdict, stored or detail}}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local current, seq, newest = standing(KEYS[1], KEYS[2], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]))
local answers = {now, seq}
for number = 3, #KEYS do
  local stored, deadline = redis.call('GET', KEYS[number]), tonumber(ARGV[number + 1])
  if current == 'behind' then
    answers[number] = {'behind', ''}
  elseif stored then
    answers[number] = {'duplicate', stored}
  elseif current == 'fenced' then
    answers[number] = {'fenced', newest}
  elseif deadline > 0 and now > deadline then
    answers[number] = {'late', ''}
  else
    answers[number] = {'open', ''}
  end
end
return answers
