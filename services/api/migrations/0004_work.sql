-- How much there is to render, for estimates: sampling steps times megapixels. Null for jobs accepted before it was kept.
ALTER TABLE jobs ADD COLUMN work DOUBLE PRECISION;
