-- Make the outcome of a call safe, before Celery stores it: answer, cache, followers, outbox, observation, gate.
-- O(followers).
-- The first answer wins; a call that is delivered again gets it and sends nothing, and needs no permit for that.
-- ARGV  now µs · tag · answer ('': none to keep) · outbox entry ('': none) · verdict · observation ('': none) · gate µs · lane · keep answer ms ·
--       what the answer is: value, short, error, passed, or alone (see share) · tokens that it really took ('': see reconcile) ·
--       a failure that cost a try ('': none, see fare) · what asking again costs, and the answer packed ('': as it is): see cache
-- returns  1 settled now | 0 was settled before, or the call is gone
return (ending.settle(ARGV))
