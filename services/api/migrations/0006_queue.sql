-- What waits, in the order in which it is chosen, so that a claim reads the first rows however long the queue is. The
-- pool is there to pass over what other backends serve, and to count, without looking at the rows themselves.
CREATE INDEX jobs_queue ON jobs (status, priority DESC, id, pool);
DROP INDEX jobs_waiting;
