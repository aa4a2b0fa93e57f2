-- One schema for SQLite and PostgreSQL: TEXT ids, BIGINT milliseconds since 1970 (UTC), BIGINT flags (0 or 1), TEXT JSON.

CREATE TABLE jobs (
    id TEXT NOT NULL PRIMARY KEY,           -- UUIDv7, hyphenated: sorts by the time of accept
    owner TEXT NOT NULL,                    -- slug
    status TEXT NOT NULL,                   -- pending, running, completed, failed, cancelled
    attempt BIGINT NOT NULL,                -- last started attempt; 0 before the first
    seq BIGINT NOT NULL,                    -- seq of the last recorded event, within the attempt
    event_seq BIGINT,                       -- stream sequence of that event; null until `queued` is recorded
    request TEXT NOT NULL,                  -- JSON: the checked request, input images as input:<id>
    params TEXT NOT NULL,                   -- JSON: the request as sent, input images as input:<id>
    priority BIGINT NOT NULL,               -- 0 low, 1 normal, 2 high
    pool TEXT NOT NULL,                     -- which backends may take it
    label TEXT,                             -- the client's own mark
    model TEXT,                             -- checkpoint it asks for; null means any
    wanted_backend TEXT,                    -- the one backend that may take it; null means any
    batch_id TEXT,                          -- jobs that were submitted together
    max_attempts BIGINT NOT NULL,           -- how many renders may be tried
    deadline_at BIGINT,                     -- when it must have ended
    created_at BIGINT NOT NULL,
    started_at BIGINT,                      -- start of the last attempt
    finished_at BIGINT,
    not_before BIGINT NOT NULL,             -- earliest next claim
    cancelling BIGINT NOT NULL,             -- 1 once a cancel was asked for
    backend TEXT,                           -- where the last attempt ran
    estimated_duration DOUBLE PRECISION,    -- seconds, as told at its start
    claim_token TEXT,                       -- who may act for it now; null if nobody
    claim_backend TEXT,                     -- on which backend
    lease_until BIGINT NOT NULL,            -- end of that claim unless renewed, on the database's clock
    give_backs BIGINT NOT NULL,             -- claims given back or lapsed in a row, before a start
    result TEXT,                            -- JSON: the terminal envelope's data
    message TEXT                            -- JSON: the last lifecycle envelope, for readers that the stream has forgotten
);

-- What a claim looks for, in the order in which it is chosen.
CREATE INDEX jobs_waiting ON jobs (status, priority, id);
-- What a client lists.
CREATE INDEX jobs_owner ON jobs (owner, id);
CREATE INDEX jobs_batch ON jobs (batch_id);

-- Events that are accepted but not yet seen in the stream. The projector removes a row when it reads the event.
CREATE TABLE outbox (
    id TEXT NOT NULL PRIMARY KEY,           -- UUIDv7; also the event's author
    job_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    kind TEXT NOT NULL,                     -- last token of the subject
    attempt BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    expected_last BIGINT NOT NULL,          -- stream sequence of the job's last event that the author knew
    payload TEXT NOT NULL,                  -- the envelope
    due_at BIGINT NOT NULL,                 -- earliest next try: also the lease of whoever tries
    tries BIGINT NOT NULL,
    parked BIGINT NOT NULL,                 -- 1 once it was refused for good
    created_at BIGINT NOT NULL
);
CREATE INDEX outbox_due ON outbox (parked, due_at);
CREATE INDEX outbox_job ON outbox (job_id);

-- Attempts that failed, for the history on the job.
CREATE TABLE attempts (
    job_id TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    backend TEXT,
    ended_at BIGINT NOT NULL,
    error TEXT NOT NULL,                    -- JSON: the failure
    PRIMARY KEY (job_id, attempt)
);

-- First answers, to be given again.
CREATE TABLE idempotency (
    owner TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    body_hash TEXT NOT NULL,                -- hex SHA-256 of the canonical body
    answer TEXT NOT NULL,                   -- JSON
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (owner, idempotency_key)
);

-- Input images that an owner has stored; the bytes lie in the object store under inputs/<id>.
CREATE TABLE inputs (
    owner TEXT NOT NULL,
    id TEXT NOT NULL,                       -- hex SHA-256 of the bytes
    content_type TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    width BIGINT NOT NULL,
    height BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (owner, id)
);

-- The newest lease of each backend that has claimed; older holders are refused.
CREATE TABLE backend_epochs (
    backend_id TEXT NOT NULL PRIMARY KEY,
    epoch BIGINT NOT NULL,                  -- revision of its lease in NATS
    seen_at BIGINT NOT NULL                 -- when its holder last asked for work, to about ten seconds
);
