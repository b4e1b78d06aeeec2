-- Whether requests could still commit: asked before an act whose undoing would cost a running session.
-- KEYS  1 epoch  2… result keys      ARGV  1 epoch of this writer  2… deadlines in ms, 0 for none
-- Returns {server time in ms, then for each request {verdict, stored or detail}}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch = redis.call('GET', KEYS[1])
local answers = {now}
for number = 2, #KEYS do
  local stored, deadline = redis.call('GET', KEYS[number]), tonumber(ARGV[number])
  if stored then
    answers[number] = {'duplicate', stored}
  elseif epoch ~= ARGV[1] then
    answers[number] = {'fenced', epoch or ''}
  elseif deadline > 0 and now > deadline then
    answers[number] = {'late', ''}
  else
    answers[number] = {'open', ''}
  end
end
return answers
