-- When a cancel was first asked for, on the database's clock: so that the end can say how long it took.
ALTER TABLE jobs ADD COLUMN cancel_asked_at BIGINT;
