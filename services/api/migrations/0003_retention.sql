-- What was removed for its age: so that a client is told that it is gone, rather than that it never was.
CREATE TABLE expired (
    id TEXT NOT NULL PRIMARY KEY,           -- of a job, or input:<id> of an input image
    owner TEXT NOT NULL,
    expired_at BIGINT NOT NULL
);
CREATE INDEX expired_at ON expired (expired_at);

-- What the sweep looks for.
CREATE INDEX jobs_finished ON jobs (finished_at);
