-- Where the job's trace goes on: JSON with the headers of W3C Trace Context. Null for jobs that nobody traces.
ALTER TABLE jobs ADD COLUMN trace TEXT;
-- Where the event's author stood.
ALTER TABLE outbox ADD COLUMN trace TEXT;
