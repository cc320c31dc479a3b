"""All keys that this package has in Redis, in one table; each has a TTL or a bound.

One row for each key. Capital letters in a name stand for any text (L a lane, P a parent, Q a queue, REF a call's
reference). A bound with "TTL:" means that the key always has a TTL. The tests read this table and the next. After each
test that used a server they check that every key is in the table, with its type and TTL, and has only fields that are
in the second table. Scripts build these names themselves (record.lua); all other code uses the functions below.

The sweep removes lanes whose hash has expired, and lanes without configuration that were not used for a day
(sweep.lua). A REF `canvas-…` belongs to an ordinary task whose canvas holds calls; its payload is deleted with its
message, or after 7 days.

| key | type | holds | bound |
|---|---|---|---|
| `rlw:lanes` | ZSET lane → last use (µs, to the hour) | every lane that is known | `MAISD_MAX_LANES` |
| `rlw:lane:L` | HASH | set-points, levels, counters of lane L | TTL: 30 days after use, or its last call's deadline |
| `rlw:queues:L` | SET | queues on which calls of L wait | queues; emptied with them |
| `rlw:wait:N:L:Q` | ZSET ref → tag | calls of one lane that wait on one queue | `MAISD_MAX_WAITING` |
| `rlw:due:N:L:Q` | ZSET ref → µs | calls of one lane and queue that wait for a time | `MAISD_MAX_WAITING` |
| `rlw:waiting` | HASH | how many wait on each queue, over all lanes; counted anew every 10 minutes | queues |
| `rlw:tenants:L` | ZSET class:tenant → finish tag | fair queueing | TTL: 1 hour; tenants ahead of the lane's `v` |
| `rlw:turns:P` | ZSET lane → start tag | the row of parent P: lanes that wait for it | lanes |
| `rlw:shares:P` | ZSET lane → finish tag | fair queueing of P's lanes | TTL: 1 hour; lanes ahead of P's `turn` |
| `rlw:day:N:L` | HASH | requests and tokens of lane L on day N of its zone, where it has a quota | TTL: 2 days |
| `rlw:budgets` | HASH name → budget, JSON | dollars of tenants, contexts and all calls | 10,000 |
| `rlw:spent:NAME` | HASH | what was spent of budget NAME this day and month | TTL: 63 days |
| `rlw:unfunded:NAME` | ZSET lane or ref → µs | what waits for money in NAME | TTL: its end + 1 day; lanes, calls |
| `rlw:strict:L` | ZSET ref → µs | calls that fail rather than wait for money | TTL: deadline + 1 day; calls |
| `rlw:out:L` | ZSET tag → 0, begun 1, worker died 2 | calls released, not freed; of a parent: its lanes' | slots |
| `rlw:ready:C:Q` | LIST | calls released to crew C of queue Q: workers that know the same tasks | slots; or the sweep |
| `rlw:ready:+:Q` | LIST | ordinary tasks of queue Q whose canvas holds calls: for any crew | as kombu's list of Q |
| `rlw:oncrew:C:Q` | SET of tags | calls that are out on slots, by crew and queue (not those aside) | slots |
| `rlw:oncrews` | SET of C:Q | crews with such a set | crews; the sweep drops the empty |
| `rlw:onqueue:Q` `rlw:onqueues` | SET | the same by queue, of a version without crews | slots |
| `rlw:ledger` | ZSET tag → lease end (µs) | all calls that are out | slots |
| `rlw:aside` | SET of tags | calls out that take no slot: lent, or their worker is gone | slots; until the lease ends |
| `rlw:lent` | HASH worker → calls by lane and queue | lent calls, which it runs beside its slots | TTL: 60 s; workers |
| `rlw:overdue` | HASH worker → calls | calls given up whose functions still run there | TTL: 60 s; workers |
| `rlw:suspects` | ZSET ref → waits, out, alone (0 to 2) | ran when a worker died | TTL: 30 days; until they end |
| `rlw:suspects:at` | HASH ref → process | where these run; `!`: alone in it | TTL: 30 days; until they end |
| `rlw:call:REF` | HASH | message and record of one call, claim, what failed it last | TTL: deadline + 1 day |
| `rlw:payload:REF` | STRING | args, kwargs, canvas: prompts; else in `shelved:`, a captured outbox | TTL: as its call |
| `rlw:settled:REF` | STRING | answer, until the ack | TTL: deadline + 1 day; deleted by FREE |
| `rlw:done:REF` | STRING | publication of an ended call; `held`: forgotten while a worker runs it | TTL: 1 hour |
| `rlw:claim:FP` | STRING | leader (REF) of the calls with fingerprint FP | TTL: as the leader; deleted by settle |
| `rlw:followers:FP` | ZSET ref → µs | calls that wait for the leader's answer | TTL: deadline + 1 day; 1,000 |
| `rlw:degradable:L` | ZSET ref → 0, 1 | calls to answer or shed in an emergency | TTL: deadline + 1 day; calls |
| `rlw:answered` | ZSET ref → µs | calls with another's answer, on their way to a worker | calls |
| `rlw:cache:FP` | HASH | a kept answer; context, tags, func, size, ends | TTL: `cache_ttl`, and its time beyond |
| `rlw:cache:used` | ZSET fp → score | the lowest goes first (policy/worth.py) | `MAISD_MAX_CACHE_ENTRIES` |
| `rlw:cache:ends` | ZSET fp → µs | when it goes, `stale_ttl` after its end | the same |
| `rlw:cache:sizes` | HASH fp → bytes | its size; the sum, and the floor of scores | the same; `MAISD_CACHE_SIZE_MB` |
| `rlw:reuse:N` | HASH | what shared answers saved in minute N | TTL: 2 days; 2,000 series, then one a lane |
| `rlw:reuse:minutes` | ZSET N → N | minutes with such a hash | TTL: 2 days after the last; 2,880 |
| `rlw:expiry` | ZSET ref → µs | when a call is delivered without a permit: its deadline, or now if answered | calls |
| `rlw:next` | ZSET lane → µs | when the pump must look at a lane, or (newline + P) at the row of parent P | lanes |
| `rlw:hungry` | SET | queues with a row | queues |
| `rlw:hungry:Q` | ZSET lane → place | the row of queue Q: lanes with a permit and no slot | lanes |
| `rlw:full` | HASH lane → begins, ends | lanes that wait for one of their own calls to do that | lanes |
| `rlw:busy` | SET | lanes with something out | lanes; the sweep drops the others |
| `rlw:workers` | ZSET worker → µs | until when a worker lives | workers; dropped by score |
| `rlw:crew` `rlw:held` | HASH | crew, slots and queues of a worker; tags that it held at its last beat | workers |
| `rlw:heard` | HASH | when a worker last beat | workers |
| `rlw:slots` | HASH | slots and queues of a worker, for a version without crews | workers |
| `rlw:tasks:C` | SET | names of the tasks that crew C knows, as JSON has them | TTL: 1 hour after its last beat |
| `rlw:crews` | HASH | the sums of the slots, by queue and crew | TTL: 60 s |
| `rlw:room` | HASH | the sums of the slots, of a version without crews | TTL: 60 s |
| `rlw:parked` `rlw:crowded` | SET of N:queue:task | tasks with parked calls; those that a crew knows | those tasks |
| `rlw:parked:N:Q:TASK` | ZSET ref → µs | calls of queue Q whose task no crew with a slot knows | TTL: 1 hour |
| `rlw:desks` | ZSET queue → s | when an in-process caller was last seen | processes; dropped when gone |
| `rlw:pump` | HASH | the pump's planned sleep, the sweep's grace, the next place in a row | 1 |
| `rlw:duty:NAME` | STRING | who holds a duty | TTL: its lease |
| `rlw:seen:L` | LIST | observations for the tuner | TTL: 1 hour; 2,000 |
| `rlw:seen` | SET | lanes with observations | lanes |
| `rlw:urgent` | SET | those that the tuner looks at first: refused, or sick in a row | lanes |
| `rlw:fared:N:L` | HASH | attempts of lane L in half minute N: failed, answered; by function | TTL: 330 s; 2,000 |
| `rlw:probed:L` | HASH task (or process) → number | last probe of each, while L's provider is away | TTL: 1 hour; 16 |
| `rlw:pins` | HASH lane (`*`: all) → pin | pins | lanes that are pinned; dropped when the pin ends |
| `rlw:pins:changes` | STRING | how often pins were changed | TTL: 1 day after the last |
| `rlw:lost` | ZSET id → s | calls that Redis had forgotten: when this was told | TTL: 1 day after the last; 10,000 |
| `rlw:outbox` | STREAM | outcomes on their way to the tracking database | 5,000,000 |
| `rlw:database:lost` | HASH | when a tracking database was lost, and how (`at`, `what`) | TTL: 1 day |
| `rlw:outbox:sums` | HASH | sums of outcomes for which the outbox had no room | 50,000, then one an hour and lane |
| `rlw:outbox:sums:taken` | HASH | the same, while they are added to the database | as the row before |
| `rlw:outbox:bad` | LIST | outcomes that the database will never accept, and why | 1,000 |
| `rlw:outbox:bad:count` | STRING | how many of them there were | 1 |
| `rlw:alerts` | STREAM | notices on their way to the web hook | TTL: 1 day after the last; 1,000 |
| `rlw:alerts:news` | LIST | mode changes that the rules of alerts have not seen | TTL: 1 day after the last; 1,000 |
| `rlw:alerts:states` | HASH | alerts that are open or about to be | TTL: 30 days after the last look; 1,000 |
| `rlw:alerts:records` | HASH id → alert | on their way to the tracking database | TTL: 30 days; 1,000 |
| `rlw:alerts:silences` | HASH kind, lane → silence | alerts without notices | TTL: until the last ends; 200 |
| `rlw:alerts:hook` | HASH | since when there is a web hook, by a digest of its address | TTL: 30 days after its use |
| `rlw:alerted` | ZSET id → s | notices that were sent | TTL: 2 days after the last; 1,000 |
| `rlw:alerted:EVENT:L` | STRING | of an older version: what was told and goes on | TTL: 1 hour |
| `rlw:usage` | HASH task and model → means | what answers used, to estimate tokens | TTL: 30 days; 2,000 |
| `rlw:prices` | HASH provider and model → price card | published prices, as far as asked for | TTL: 30 days; 2,000 |
| `rlw:latencies` | HASH task and model → histogram | how long answers took | TTL: 30 days after the last; 2,000 |
| `rlw:retries` | HASH task → words | tasks that retry by themselves | TTL: 30 days after a worker last started; 1,000 |
| `rlw:malformed` | LIST | messages set aside | TTL: 7 days; 1,000 |
| `rlw:shelf` | ZSET id → µs | calls that failed and can be run again | TTL: 30 days; `MAISD_MAX_FAILED_CALLS` |
| `rlw:shelf:sizes` | HASH id → bytes | what each of them takes, and all | as the row before; `MAISD_FAILED_CALLS_MB` |
| `rlw:shelved:ID` | HASH | message and arguments of one of them | TTL: `MAISD_FAILED_CALLS_HOURS`, at most 30 days |
| `rlw:counters` | HASH | counters by name | names in the next table |

The fields of each hash; a hash with many fields has several rows. `#` is the number of a dimension (1 to 4). "Packed"
means msgpack, which scripts can read.

| hash | fields |
|---|---|
| `rlw:lane:L` | the table `FIELDS` in contracts/lane.py |
| `rlw:day:N:L` | `requests`, `tokens`: used of the day's quota |
| `rlw:budgets` | `NAME`: contracts/budget.py, JSON |
| `rlw:spent:NAME` | `day`, `month`: which these are; `day_spent`, `month_spent`: billionths of a dollar |
| `rlw:spent:NAME` | `mean`: what a call usually costs; `answers`: of how many that is, to 20 |
| `rlw:lent` | `WORKER`: {lane: {queue: calls}}, packed |
| `rlw:overdue` | `WORKER`: its calls, JSON |
| `rlw:waiting` | `q:Q`: calls; `at`: when all were counted, µs |
| `rlw:suspects:at` | `REF`: process, after a ! where it has that for itself |
| `rlw:call:REF` | `i`: record, packed; `m`: message; `c`: claim, packed; `f`: its sick answers in a row, packed |
| `rlw:call:REF` | `w`: its last failure, packed |
| `rlw:cache:FP` | `answer`; `context`, `tags` (JSON), `func`: for `cache clear`; `size`: bytes |
| `rlw:cache:FP` | `packed`: a large answer, in place of `answer` (contracts/kept.py) |
| `rlw:cache:FP` | `ends`: µs since the epoch; `uses`: calls that got it, its own too; `worth`: of one, in its score |
| `rlw:cache:FP` | `paid`: what it cost, which each use saves, 10⁻⁹ dollars |
| `rlw:cache:FP` | `asked`: when a call was last sent to renew it, µs since the epoch |
| `rlw:cache:FP` | `of`: {lane, tenant, its tokens of input, of output}, packed |
| `rlw:reuse:N` | `name`: under which the database adds it once |
| `rlw:reuse:N` | `misses:SERIES`, `joined:SERIES`, `refreshed:SERIES`: calls |
| `rlw:reuse:N` | `sums:SERIES`: {name: number}, packed. SERIES: {lane, task, context, tenant}, packed |
| `rlw:cache:sizes` | `FP`: bytes; `all`: their sum; `floor`: of the scores |
| `rlw:full` | `L`: begins or ends: what one of its calls has to do |
| `rlw:crew` | `WORKER`: {crew, slots, queue …}, packed |
| `rlw:slots` | `WORKER`: {slots, queue …}, packed |
| `rlw:held` | `WORKER`: {tag …}, packed |
| `rlw:heard` | `WORKER`: µs |
| `rlw:crews` | `sums`: {slots of crews, µs until which it holds, lease, slots of older versions, calls aside}, packed |
| `rlw:crews` | `q:Q`: {slots, of an older version, {crew, slots, free, workers} …}, packed |
| `rlw:crews` | `on:Q`: the crew of the last call released there, which is in `rlw:oncrews` |
| `rlw:room` | `TEXT`: an older version's sums |
| `rlw:pump` | `sleep`: until when the pump sleeps, µs; `lease`: µs; `swept`: the last sweep, µs |
| `rlw:pump` | `grace`: until when it returns nothing, µs; `audit`: the next lane to be looked at |
| `rlw:pump` | `row`: the last place given in a row; `woken`: until when parked calls are left alone, µs |
| `rlw:pump` | `party`, `again`: most suspects known at once; how often some were lost again |
| `rlw:fared:N:L` | `failed`, `answered`: attempts of all; `f:NAME`, `a:NAME`: of one function |
| `rlw:probed:L` | `PARTY`: number of the lane's call that was its last probe |
| `rlw:pins` | `L`: pin, packed; `*`: of all lanes |
| `rlw:database:lost` | `at`: seconds since the epoch; `what`: in words |
| `rlw:outbox:sums` | `name`: their id, which the database adds once; `(minute, series)`, packed: a cell, packed |
| `rlw:outbox:sums:taken` | as in `rlw:outbox:sums` |
| `rlw:alerts:states` | `KIND:N:L:ABOUT`: an alert, JSON; `at`: the last look, s |
| `rlw:alerts:states` | `set_aside`: messages set aside by then |
| `rlw:alerts:records` | `ID`: an alert, JSON |
| `rlw:alerts:silences` | `KIND:N:L:`: a silence, JSON |
| `rlw:alerts:hook` | `hook`: digest; `since`: seconds since the epoch |
| `rlw:usage` | `NAME`: task and model → means, packed |
| `rlw:prices` | `NAME`: provider and model → price card, packed |
| `rlw:latencies` | `NAME`: task and model → histogram, packed |
| `rlw:retries` | `TASK`: words |
| `rlw:shelf:sizes` | `ID`: bytes; the empty name: their sum |
| `rlw:shelved:ID` | `m`: message; `p`: args, kwargs, canvas; `q`: queue; `n`: attempts made; `d`: how long it had, µs |
| `rlw:counters` | `released`: the number of the last release |
| `rlw:counters` | `restored`, `reclaimed`, `replaced`, `leaks`: put right by sweep, pump and known.lua |
| `rlw:counters` | `expired`, `revoked`, `joined`, `shed`: calls |
| `rlw:counters` | `over_budget`: calls that failed rather than wait for money |
| `rlw:counters` | `refused_full`, `refused_lanes`: refused by a bound |
| `rlw:counters` | `cache_hits`, `cache_stale`, `cache_evicted`, `cache_evicted_bytes`, `uncached`: kept answers |
| `rlw:counters` | `unreadable`, `unrecorded`, `unheeded`, `untold`, `unsummed`: what a script could not do |
| `rlw:counters` | `malformed`: messages set aside |
"""

from __future__ import annotations

#: Prefix of all keys, except kombu's and Celery's own.
NAMESPACE = "rlw:"

OUTBOX = NAMESPACE + "outbox"
DESKS = NAMESPACE + "desks"
WORKERS = NAMESPACE + "workers"
SLOTS = NAMESPACE + "slots"
HELD = NAMESPACE + "held"
LOST = NAMESPACE + "lost"
ALERTS = NAMESPACE + "alerts"
ALERT_NEWS = ALERTS + ":news"
ALERT_STATES = ALERTS + ":states"
ALERT_RECORDS = ALERTS + ":records"
ALERT_SILENCES = ALERTS + ":silences"
ALERT_HOOK = ALERTS + ":hook"
ALERTED = NAMESPACE + "alerted"
DATABASE_LOST = NAMESPACE + "database:lost"
MALFORMED = NAMESPACE + "malformed"
COUNTERS = NAMESPACE + "counters"
LANES = NAMESPACE + "lanes"
PINS = NAMESPACE + "pins"
PINS_CHANGES = PINS + ":changes"
USAGE = NAMESPACE + "usage"
PRICES = NAMESPACE + "prices"
BUDGETS = NAMESPACE + "budgets"
LATENCIES = NAMESPACE + "latencies"
RETRIES = NAMESPACE + "retries"
LEDGER = NAMESPACE + "ledger"
OVERDUE = NAMESPACE + "overdue"
WAKE = NAMESPACE + "wake"  #: pub/sub channel: the pump's plan changed
CACHE = NAMESPACE + "cache:"
CACHE_USED = CACHE + "used"
CACHE_ENDS = CACHE + "ends"
CACHE_SIZES = CACHE + "sizes"
REUSE_MINUTES = NAMESPACE + "reuse:minutes"
ANSWERED = NAMESPACE + "answered"
SEEN = NAMESPACE + "seen"
URGENT = NAMESPACE + "urgent"
TUNE = NAMESPACE + "tune"  #: pub/sub channel: a refusal or a sick row, the tuner should look now


def sums(outbox: str = OUTBOX) -> str:
    """Sums of outcomes that an outbox had to give up."""
    return f"{outbox}:sums"


def sums_taken(outbox: str = OUTBOX) -> str:
    """The same, while it is added to the tracking database."""
    return f"{outbox}:sums:taken"


def reuse(minute: int) -> str:
    """What reused answers have saved in one minute, by its number since the epoch."""
    return f"{NAMESPACE}reuse:{minute}"


def bad(outbox: str = OUTBOX) -> str:
    """Outcomes that the database will never accept."""
    return f"{outbox}:bad"


def bad_count(outbox: str = OUTBOX) -> str:
    """How many of them there were."""
    return f"{outbox}:bad:count"


def out(lane_name: str) -> str:
    """Calls of a lane that are released and not freed."""
    return f"{NAMESPACE}out:{lane_name}"


def queues(lane_name: str) -> str:
    """Queues on which calls of a lane wait."""
    return f"{NAMESPACE}queues:{lane_name}"


def lane(name: str) -> str:
    """Set-points, levels and counters of a lane."""
    return f"{NAMESPACE}lane:{name}"


def waiting(name: str, queue: str) -> str:
    """Calls of a lane that wait on a queue; the length keeps `a:b` + `c` apart from `a` + `b:c`."""
    return f"{NAMESPACE}wait:{len(name.encode())}:{name}:{queue}"


def due(name: str, queue: str) -> str:
    """Calls of a lane and queue that wait for a time."""
    return f"{NAMESPACE}due:{len(name.encode())}:{name}:{queue}"


def hungry(queue: str) -> str:
    """The row of a queue: lanes with a permit and no slot."""
    return f"{NAMESPACE}hungry:{queue}"


def turns(parent: str) -> str:
    """Lanes that wait for a parent."""
    return f"{NAMESPACE}turns:{parent}"


def day(lane: str, at_s: float, offset_s: float = 0.0) -> str:
    """What a lane with a quota has used of its day, at an instant.

    Args:
        offset_s: How far its zone is ahead of UTC then, seconds.
    """
    return f"{NAMESPACE}day:{int((at_s + offset_s) // 86_400)}:{lane}"


def spent(budget: str) -> str:
    """What was spent of a budget."""
    return f"{NAMESPACE}spent:{budget}"


def unfunded(budget: str) -> str:
    """What waits for money in a budget."""
    return f"{NAMESPACE}unfunded:{budget}"


#: Name of the crew of a process that makes calls in process: it knows every task of its queue.
ALL = "*"
#: Stands for all crews of a queue, for ordinary tasks whose body is stored apart, which stock workers cannot read.
ANY = "+"
CREW = NAMESPACE + "crew"
CREWS = NAMESPACE + "crews"
READY = NAMESPACE + "ready:"
PARKED = NAMESPACE + "parked"


def ready(crew: str, queue: str) -> str:
    """Messages of released calls, for one crew of a queue."""
    return f"{READY}{crew}:{queue}"


def crew_and_queue(ready_list: str) -> tuple[str, str] | None:
    """The arguments from which `ready` made this key; None: it is another key."""
    if not ready_list.startswith(READY):
        return None
    crew, _, queue = ready_list[len(READY) :].partition(":")
    return crew, queue


def oncrew(crew: str, queue: str) -> str:
    """Tags of calls that are out, of one crew of a queue."""
    return f"{NAMESPACE}oncrew:{crew}:{queue}"


def tasks(crew: str) -> str:
    """Tasks that a crew knows."""
    return f"{NAMESPACE}tasks:{crew}"


def parked(queue: str, task: str) -> str:
    """Calls of one task that wait on a queue for a worker that knows it."""
    return f"{PARKED}:{len(queue.encode())}:{queue}:{task}"


def done(ref: str) -> str:
    """The publication of a call that has ended."""
    return f"{NAMESPACE}done:{ref}"


def call(ref: str) -> str:
    """Message and record of one call."""
    return f"{NAMESPACE}call:{ref}"


def payload(ref: str) -> str:
    """Body of one call."""
    return f"{NAMESPACE}payload:{ref}"


def settled(ref: str) -> str:
    """Answer of one call, until its message is acknowledged."""
    return f"{NAMESPACE}settled:{ref}"


def claim(fingerprint: str) -> str:
    """Leader of the calls with one fingerprint."""
    return f"{NAMESPACE}claim:{fingerprint}"


def followers(fingerprint: str) -> str:
    """Calls that wait for their leader's answer."""
    return f"{NAMESPACE}followers:{fingerprint}"


def cache(fingerprint: str) -> str:
    """A kept answer."""
    return f"{CACHE}{fingerprint}"


def shelved(call_id: str) -> str:
    """Message and arguments of a call that has failed and can be run again."""
    return f"{NAMESPACE}shelved:{call_id}"


def duty(name: str) -> str:
    """Lease of a duty."""
    return f"{NAMESPACE}duty:{name}"
