-- Make the outcome of a call safe, before Celery stores it: answer, cache, followers, outbox, observation, gate. O(followers).
-- The first answer wins: when the call is delivered again it gets that answer, sends nothing and needs no permit.
-- ARGV  now µs · tag · answer ('': none) · outbox entry ('': none) · verdict · observation ('': none) · gate µs · lane ·
--       how long the call's own answer is kept, ms · kind of the answer: value, short, error, passed, alone (see share) ·
--       tokens really used, packed ('': the estimate stays; see reconcile) · failure that cost a try ('': none; see fared.fare) ·
--       what asking again costs, billionths of a dollar · the answer compressed ('': kept as it is) · what it cost, billionths of
--       a dollar (0: no price is known); for these see cache · what the attempt cost, answered or not ·
--       tokens of input and of output that the answer took: see cache
-- returns  1 settled now | 0 it was settled before, or the call is gone
return (ending.settle(ARGV))
