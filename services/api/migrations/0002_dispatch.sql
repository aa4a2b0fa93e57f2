-- Trying elsewhere: where the last attempt failed.
ALTER TABLE jobs ADD COLUMN avoid TEXT;

-- What a person wants of a backend. No row means that it may work.
CREATE TABLE backend_modes (
    backend_id TEXT NOT NULL PRIMARY KEY,
    mode TEXT NOT NULL,                     -- paused: it is given no work
    since BIGINT NOT NULL
);
