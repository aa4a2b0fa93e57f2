-- What statistics count, beside the ends themselves. Null for jobs of before, which are then left out of that figure.
ALTER TABLE jobs ADD COLUMN first_started_at BIGINT;    -- start of the first attempt
ALTER TABLE jobs ADD COLUMN steps BIGINT;               -- sampling steps of all passes, as asked for
ALTER TABLE jobs ADD COLUMN images BIGINT;              -- images of a completed job
ALTER TABLE jobs ADD COLUMN error_code TEXT;            -- why it did not complete

-- The ended jobs in the order of their ends, with all that is counted, so that no row itself has to be read.
CREATE INDEX jobs_ended ON jobs
    (finished_at, status, backend, started_at, first_started_at, created_at, steps, images, error_code)
    WHERE finished_at IS NOT NULL;
DROP INDEX jobs_finished;

ALTER TABLE attempts ADD COLUMN started_at BIGINT;      -- null if it was never started
ALTER TABLE attempts ADD COLUMN code TEXT;              -- of the failure
ALTER TABLE attempts ADD COLUMN retried BIGINT;         -- 1 if another attempt followed
ALTER TABLE attempts ADD COLUMN timeline TEXT;          -- JSON: when it got where
CREATE INDEX attempts_retried ON attempts (ended_at, backend, code, started_at) WHERE retried = 1;
