"""Which keys does the product own in Redis? One table; each has a TTL or a bound.

One row a key. Capital letters in a name stand for any text (L a lane, P a parent, Q a queue, REF a call's reference).
"TTL:" before a bound: such a key has one at any time. The tests read this table and the next, and look after each test
that used a server whether every key is in it, of its type and with its TTL, and has no field that is not in the second.
Scripts build these names themselves (record.lua); everybody else asks the functions below.

The sweep drops lanes whose hash has ended, and after a day those of which nobody has said anything (sweep.lua). The REF
`canvas-…` is an ordinary task's whose canvas holds calls; its payload goes with its message, or after 7 days.

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
| `rlw:out:L` | ZSET tag → begun (0, 1) | released and not freed; of a parent's lanes too | slots |
| `rlw:ready:C:Q` | LIST | calls released to crew C of queue Q: workers that know the same tasks | slots; or the sweep |
| `rlw:ready:+:Q` | LIST | ordinary tasks of queue Q whose canvas holds calls: for any crew | as kombu's list of Q |
| `rlw:oncrew:C:Q` | SET of tags | what is out, by crew and queue, but for those set aside | slots |
| `rlw:oncrews` | SET of C:Q | crews with such a set | crews; the sweep drops the empty |
| `rlw:onqueue:Q` `rlw:onqueues` | SET | the same by queue, of a version without crews | slots |
| `rlw:ledger` | ZSET tag → lease end (µs) | the same, all lanes | slots |
| `rlw:aside` | SET of tags | out, on no slot: its worker died, is full, or lent it | slots; until the lease ends |
| `rlw:lent` | HASH worker → calls by lane and queue | that it runs beside its slots | TTL: 60 s; workers |
| `rlw:overdue` | HASH worker → calls | given up, though their functions still run there | TTL: 60 s; workers |
| `rlw:suspects` | ZSET ref → waits, out, alone (0 to 2) | what ran when a worker died | TTL: 30 days; until they end |
| `rlw:suspects:at` | HASH ref → process | where they run; `!`: one has it for itself | TTL: 30 days; until they end |
| `rlw:call:REF` | HASH | message and record of one call, claim, what failed it last | TTL: deadline + 1 day |
| `rlw:payload:REF` | STRING | args, kwargs, canvas. No other holds prompts, but a captured outbox | TTL: as its call |
| `rlw:settled:REF` | STRING | answer, until the ack | TTL: deadline + 1 day; deleted by FREE |
| `rlw:done:REF` | STRING | publication of a call that is gone; `held`: a worker runs it | TTL: 1 hour |
| `rlw:claim:FP` | STRING | leader (REF) of the calls with fingerprint FP | TTL: as the leader; deleted by settle |
| `rlw:followers:FP` | ZSET ref → µs | calls that wait for the leader's answer | TTL: deadline + 1 day; 1,000 |
| `rlw:degradable:L` | ZSET ref → 0, 1 | calls to answer or shed in an emergency | TTL: deadline + 1 day; calls |
| `rlw:answered` | ZSET ref → µs | calls with another's answer, on their way to a worker | calls |
| `rlw:cache:FP` | HASH | a kept answer; context, tags, func, size, ends | TTL: `cache_ttl` and `stale_ttl` |
| `rlw:cache:used` | ZSET fp → score | the lowest goes first (policy/worth.py) | `MAISD_MAX_CACHE_ENTRIES` |
| `rlw:cache:ends` | ZSET fp → µs | when it goes, `stale_ttl` after its end | the same |
| `rlw:cache:sizes` | HASH fp → bytes | its size; the sum, and the floor of scores | the same; `MAISD_CACHE_SIZE_MB` |
| `rlw:expiry` | ZSET ref → µs | when a call is delivered without a permit: its deadline, or now if answered | calls |
| `rlw:next` | ZSET lane → µs | when the pump must look at a lane, or (newline + P) at the row of parent P | lanes |
| `rlw:hungry` | SET | queues with a row | queues |
| `rlw:hungry:Q` | ZSET lane → place | the row of queue Q: lanes with a permit and no slot | lanes |
| `rlw:full` | HASH lane → begins, ends | lanes that wait for one of their own calls to do that | lanes |
| `rlw:busy` | SET | lanes with something out | lanes; the sweep drops the others |
| `rlw:workers` | ZSET worker → µs | until when a worker lives | workers; dropped by score |
| `rlw:crew` `rlw:held` | HASH | crew, slots and queues of a worker; tags that it held at its last beat | workers |
| `rlw:slots` | HASH | slots and queues of a worker, as far as a version without crews counts them | workers |
| `rlw:tasks:C` | SET | names of the tasks that crew C knows, as JSON has them | TTL: 1 hour after its last beat |
| `rlw:crews` | HASH | the sums of the slots, by queue and crew | TTL: 60 s |
| `rlw:room` | HASH | the sums of the slots, of a version without crews | TTL: 60 s |
| `rlw:parked` `rlw:crowded` | SET of N:queue:task | with parked calls; of which a crew knows the task | those tasks |
| `rlw:parked:N:Q:TASK` | ZSET ref → µs | calls of queue Q whose task no crew with a slot knows | TTL: 1 hour |
| `rlw:desks` | ZSET queue → s | when a process without workers was seen | processes; dropped when gone |
| `rlw:pump` | HASH | the pump's planned sleep, the sweep's grace, the next place in a row | 1 |
| `rlw:duty:NAME` | STRING | who holds a duty | TTL: its lease |
| `rlw:seen:L` | LIST | observations for the tuner | TTL: 1 hour; 2,000 |
| `rlw:seen` | SET | lanes with observations | lanes |
| `rlw:urgent` | SET | of these, lanes at which the tuner looks first: refused, or sick in a row | lanes |
| `rlw:fared:N:L` | HASH | of half minute N: attempts of lane L that failed, answers, by function | TTL: 330 s; 2,000 |
| `rlw:probed:L` | HASH task (or process) → number | last probe of each, while L's provider is away | TTL: 1 hour; 16 |
| `rlw:pins` | HASH lane (`*`: all) → pin | modes by hand | lanes that are pinned; dropped when the pin ends |
| `rlw:pins:changes` | STRING | how often these were changed | TTL: 1 day after the last |
| `rlw:lost` | ZSET id → s | forgotten calls, when a caller was told | TTL: 1 day after the last; 10,000 |
| `rlw:outbox` | STREAM | outcomes on their way to the tracking database | 5,000,000 |
| `rlw:database:lost` | HASH | when a tracking database was lost, and how (`at`, `what`) | TTL: 1 day |
| `rlw:outbox:sums` | HASH | sums of outcomes beyond its bound | 50,000, then one an hour and lane |
| `rlw:outbox:sums:taken` | HASH | the same, on their way to the database | as the row before |
| `rlw:outbox:bad` | LIST | outcomes that the database will never take, and why | 1,000 |
| `rlw:outbox:bad:count` | STRING | how many there were | 1 |
| `rlw:alerts` | STREAM | alerts on their way to the web hook | TTL: 1 day after the last; 1,000 |
| `rlw:alerted` | ZSET id → s | alerts that were told | TTL: 2 days after the last; 1,000 |
| `rlw:alerted:EVENT:L` | STRING | what was told and goes on | TTL: 15 minutes after it ended |
| `rlw:usage` | HASH task and model → means | what answers used, to estimate tokens | TTL: 30 days; 2,000 |
| `rlw:prices` | HASH provider and model → price card | published prices, as far as asked for | TTL: 30 days; 2,000 |
| `rlw:latencies` | HASH task and model → histogram | how long answers took | TTL: 30 days after the last; 2,000 |
| `rlw:retries` | HASH task → words | tasks that retry by themselves | TTL: 30 days after a worker last started; 1,000 |
| `rlw:malformed` | LIST | messages set aside | TTL: 7 days; 1,000 |
| `rlw:counters` | HASH | counters by name | names in the next table |

The fields of each hash; one that has many has several rows. `#` is the number of a dimension (1 to 4). Packed: msgpack,
which scripts read too.

| hash | fields |
|---|---|
| `rlw:lane:L` | the table `FIELDS` in contracts/lane.py |
| `rlw:day:N:L` | `requests`, `tokens`: used of the day's quota |
| `rlw:lent` | `WORKER`: {lane: {queue: calls}}, packed |
| `rlw:overdue` | `WORKER`: its calls, JSON |
| `rlw:waiting` | `q:Q`: calls; `at`: when all were counted, µs |
| `rlw:suspects:at` | `REF`: process, after a ! where it has that for itself |
| `rlw:call:REF` | `i`: record, packed; `m`: message; `c`: claim, packed; `f`: its sick answers in a row, packed |
| `rlw:call:REF` | `w`: what failed it last, packed |
| `rlw:cache:FP` | `answer`; `context`, `tags` (JSON), `func`: by which it is found; `size`: bytes |
| `rlw:cache:FP` | `packed`: a large answer, in place of `answer` (contracts/kept.py) |
| `rlw:cache:FP` | `ends`: µs since the epoch; `uses`: calls that got it, its own too; `worth`: of one, in its score |
| `rlw:cache:FP` | `paid`: what it cost, which each use saves, 10⁻⁹ dollars |
| `rlw:cache:sizes` | `FP`: bytes; `all`: their sum; `floor`: of the scores |
| `rlw:full` | `L`: begins or ends, what one of its calls has to do |
| `rlw:crew` | `WORKER`: {crew, slots, queue …}, packed |
| `rlw:slots` | `WORKER`: {slots, queue …}, packed |
| `rlw:held` | `WORKER`: {tag …}, packed |
| `rlw:crews` | `sums`: {slots of crews, µs until which it holds, lease, slots of older versions, calls aside}, packed |
| `rlw:crews` | `q:Q`: {slots, of an older version, {crew, slots, free, workers} …}, packed |
| `rlw:crews` | `on:Q`: the crew of the last call released there, which is in `rlw:oncrews` |
| `rlw:room` | `TEXT`: an older version's sums |
| `rlw:pump` | `sleep`: until when the pump sleeps, µs; `lease`: µs; `swept`: the last sweep, µs |
| `rlw:pump` | `grace`: until when it returns nothing, µs; `audit`: the next lane to be looked at |
| `rlw:pump` | `row`: the last place given in a row; `woken`: until when parked calls are left alone, µs |
| `rlw:pump` | `party`, `again`: suspects known at once, and lost again |
| `rlw:fared:N:L` | `failed`, `answered`: attempts of all; `f:NAME`, `a:NAME`: of one function |
| `rlw:probed:L` | `PARTY`: number of the lane's call that was its last probe |
| `rlw:pins` | `L`: pin, JSON; `*`: of all lanes |
| `rlw:database:lost` | `at`: seconds since the epoch; `what`: in words |
| `rlw:outbox:sums` | `name`: of these sums, which the database adds once; `(minute, series)`, packed: a cell, packed |
| `rlw:outbox:sums:taken` | as of `rlw:outbox:sums` |
| `rlw:usage` | `NAME`: task and model → means, JSON |
| `rlw:prices` | `NAME`: provider and model → price card, packed |
| `rlw:latencies` | `NAME`: task and model → histogram, JSON |
| `rlw:retries` | `TASK`: words |
| `rlw:counters` | `released`: the number of the last release |
| `rlw:counters` | `restored`, `reclaimed`, `replaced`, `leaks`: put right by sweep, pump and known.lua |
| `rlw:counters` | `expired`, `revoked`, `joined`, `shed`: calls |
| `rlw:counters` | `refused_full`, `refused_lanes`: refused by a bound |
| `rlw:counters` | `cache_saved_nanousd`, `stale_saved_nanousd`, `joined_saved_nanousd`: what answers had cost |
| `rlw:counters` | `cache_hits`, `cache_stale`, `cache_evicted`, `cache_evicted_bytes`, `uncached`: kept answers |
| `rlw:counters` | `unreadable`, `unrecorded`, `unheeded`, `untold`: what a script could not do |
| `rlw:counters` | `malformed`: messages set aside |
"""

from __future__ import annotations

#: Everything but kombu's and Celery's own keys begins so.
NAMESPACE = "rlw:"

OUTBOX = NAMESPACE + "outbox"
DESKS = NAMESPACE + "desks"
WORKERS = NAMESPACE + "workers"
SLOTS = NAMESPACE + "slots"
HELD = NAMESPACE + "held"
LOST = NAMESPACE + "lost"
ALERTS = NAMESPACE + "alerts"
ALERTED = NAMESPACE + "alerted"
DATABASE_LOST = NAMESPACE + "database:lost"
MALFORMED = NAMESPACE + "malformed"
COUNTERS = NAMESPACE + "counters"
LANES = NAMESPACE + "lanes"
PINS = NAMESPACE + "pins"
PINS_CHANGES = PINS + ":changes"
USAGE = NAMESPACE + "usage"
PRICES = NAMESPACE + "prices"
LATENCIES = NAMESPACE + "latencies"
RETRIES = NAMESPACE + "retries"
LEDGER = NAMESPACE + "ledger"
OVERDUE = NAMESPACE + "overdue"
WAKE = NAMESPACE + "wake"  #: pub/sub channel: the pump's plan changed
CACHE = NAMESPACE + "cache:"
CACHE_USED = CACHE + "used"
CACHE_ENDS = CACHE + "ends"
CACHE_SIZES = CACHE + "sizes"
ANSWERED = NAMESPACE + "answered"
SEEN = NAMESPACE + "seen"
URGENT = NAMESPACE + "urgent"
TUNE = NAMESPACE + "tune"  #: pub/sub channel: a refusal or a sick row, the tuner should look now


def sums(outbox: str = OUTBOX) -> str:
    """What outcomes beyond an outbox's bound add up to."""
    return f"{outbox}:sums"


def sums_taken(outbox: str = OUTBOX) -> str:
    """The same, while it is added to the tracking database."""
    return f"{outbox}:sums:taken"


def bad(outbox: str = OUTBOX) -> str:
    """Outcomes that the database will never take."""
    return f"{outbox}:bad"


def bad_count(outbox: str = OUTBOX) -> str:
    """How many there were."""
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


#: What a crew is called that knows every task of its queue: a process that makes calls without one.
ALL = "*"
#: Stands for every crew of a queue: ordinary tasks whose body lies apart, which no stock worker can read.
ANY = "+"
CREW = NAMESPACE + "crew"
CREWS = NAMESPACE + "crews"
READY = NAMESPACE + "ready:"
PARKED = NAMESPACE + "parked"


def ready(crew: str, queue: str) -> str:
    """Messages of released calls, for one crew of a queue."""
    return f"{READY}{crew}:{queue}"


def crew_and_queue(ready_list: str) -> tuple[str, str] | None:
    """What `ready` was made of; None: it is another key."""
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
    """Which publication a call was that is gone."""
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


def alerted(event: str, lane: str) -> str:
    """Of an event that goes on in a lane: it was told."""
    return f"{ALERTED}:{event}:{lane}"


def duty(name: str) -> str:
    """Lease of a duty."""
    return f"{NAMESPACE}duty:{name}"
