-- The alert log: dense numbers in commit order, each alert once, positions moved with the rows.

CREATE TABLE alert (
    seq bigint PRIMARY KEY,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    occurred_at timestamptz,
    source text NOT NULL,
    zone_id text COLLATE "C",
    user_id text COLLATE "C",
    status text COLLATE "C",
    camera_id text COLLATE "C",
    user_name text,
    event_id text COLLATE "C",
    -- The object as it came. Not jsonb: that loses key order and number spelling.
    body text NOT NULL
);
CREATE UNIQUE INDEX alert_event ON alert (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX alert_by_zone ON alert (zone_id, seq) WHERE zone_id IS NOT NULL;
CREATE INDEX alert_by_user ON alert (user_id, seq) WHERE user_id IS NOT NULL;
CREATE INDEX alert_by_status ON alert (status, seq) WHERE status IS NOT NULL;
CREATE INDEX alert_by_camera ON alert (camera_id, seq) WHERE camera_id IS NOT NULL;

-- Where in the log alerts of a time are: those in each span of 4096 numbers are between these times. They come
-- nearly in order, so a window of time is a few neighbouring spans, read in the order of seq. An index on the
-- time would have to be sorted by seq for each page.
CREATE TABLE alert_span (
    number bigint PRIMARY KEY,
    earliest timestamptz NOT NULL,
    latest timestamptz NOT NULL
) WITH (fillfactor = 50);

-- The head: locked by every append until its commit, which is what makes seq commit-ordered.
CREATE TABLE alert_log (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    last_seq bigint NOT NULL
);
INSERT INTO alert_log (last_seq) VALUES (0);

CREATE TABLE kafka_offset (
    topic text COLLATE "C" NOT NULL,
    "partition" integer NOT NULL,
    epoch bigint NOT NULL,
    next bigint,
    PRIMARY KEY (topic, "partition")
);

CREATE TABLE dead_letter (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    topic text NOT NULL,
    "partition" integer NOT NULL,
    "offset" bigint NOT NULL,
    reason text NOT NULL,
    size bigint NOT NULL,
    raw bytea NOT NULL
);

-- What an append is handed. Arrays of rows, because as many arrays as columns take the server longer to read.
CREATE TYPE new_alert AS (
    occurred_at timestamptz, source text, zone_id text, user_id text, status text, camera_id text,
    user_name text, event_id text, body text
);
CREATE TYPE new_dead_letter AS (
    topic text, "partition" integer, "offset" bigint, reason text, size bigint, raw bytea
);
CREATE TYPE partition_advance AS (topic text, "partition" integer, epoch bigint, expected bigint, next bigint);

-- Rows of alerts that name no event, numbered from last + 1. Unnested in the list of columns they go from the array
-- to the table one by one; in FROM they would all be written down first.
CREATE FUNCTION insert_alerts(last bigint, alerts new_alert[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO alert (seq, occurred_at, source, zone_id, user_id, status, camera_id, user_name, body)
        SELECT last + ordinal, (new).occurred_at, (new).source, (new).zone_id, (new).user_id, (new).status,
            (new).camera_id, (new).user_name, (new).body
        FROM (SELECT unnest(alerts) AS new, generate_series(1, cardinality(alerts)) AS ordinal) AS incoming;
END $$;

-- Waits for the append that numbers up to this, and makes others wait for ours.
CREATE FUNCTION hold_alerts_up_to(seq bigint) RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(1634497140, (seq & 2147483647)::integer)
$$;

-- Appends a batch. A function, because the duplicates of an event_id are looked up with a snapshot
-- that is taken after the head is locked. names_events: whether any of the alerts has an event_id. first_time,
-- last_time: of those of the alerts. fenced: ordinals of the advances that somebody else's claim made void; then
-- nothing was done. seqs: one for each alert, null for a duplicate; not told where no alert names an event, for
-- then all are stored, and last is the number of the last one.
--
-- expected: where the log will end once the append that is under way is committed. Then the rows, most of the
-- work, are inserted beside it and before the head is locked; where the log ends elsewhere, or the head is somebody
-- else's, the call fails and nothing of it stays. Not for alerts that name events. With rows inserted the head is never
-- waited for, and a row of another's for a moment only: whoever has the head may be waiting for our numbers.
CREATE FUNCTION append_alerts(
    alerts new_alert[], names_events boolean, first_time timestamptz, last_time timestamptz,
    letters new_dead_letter[], advances partition_advance[], expected bigint,
    OUT seqs bigint[], OUT last bigint, OUT fenced bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    count bigint := cardinality(alerts);
    patience text := current_setting('lock_timeout');
BEGIN
    IF expected IS NULL THEN
        SELECT last_seq INTO STRICT last FROM alert_log FOR UPDATE;
        PERFORM hold_alerts_up_to(last + count);
    ELSE
        PERFORM hold_alerts_up_to(expected + count);
        PERFORM set_config('lock_timeout', '100ms', true);
        PERFORM insert_alerts(expected, alerts);
        PERFORM set_config('lock_timeout', patience, true);
        PERFORM hold_alerts_up_to(expected);
        SELECT last_seq INTO STRICT last FROM alert_log FOR UPDATE NOWAIT;
        IF last <> expected THEN
            RAISE serialization_failure USING MESSAGE = format('the log ends with %s, not with %s', last, expected);
        END IF;
    END IF;

    PERFORM 1 FROM kafka_offset AS k JOIN unnest(advances) AS a USING (topic, "partition")
        ORDER BY topic, "partition" FOR UPDATE OF k;
    SELECT array_agg(a.ordinal) INTO fenced
        FROM unnest(advances) WITH ORDINALITY AS a(topic, "partition", epoch, expected, next, ordinal)
        LEFT JOIN kafka_offset AS k USING (topic, "partition")
        WHERE k.epoch IS NULL OR k.epoch <> a.epoch OR k.next IS DISTINCT FROM a.expected;
    IF fenced IS NOT NULL AND expected IS NOT NULL THEN
        RAISE serialization_failure USING MESSAGE = 'an advance is void';
    ELSIF fenced IS NOT NULL THEN
        RETURN;
    END IF;

    UPDATE kafka_offset AS k SET next = a.next
        FROM unnest(advances) AS a WHERE (k.topic, k."partition") = (a.topic, a."partition");

    INSERT INTO dead_letter (topic, "partition", "offset", reason, size, raw) SELECT * FROM unnest(letters);

    IF names_events THEN
        WITH incoming AS (
            SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY ordinal) AS occurrence
            FROM unnest(alerts) WITH ORDINALITY
                AS i(occurred_at, source, zone_id, user_id, status, camera_id, user_name, event_id, body, ordinal)
        ), numbered AS (
            SELECT *, last + row_number() OVER (ORDER BY ordinal) AS seq FROM incoming AS i
            WHERE event_id IS NULL
                OR (occurrence = 1 AND NOT EXISTS (SELECT 1 FROM alert AS a WHERE a.event_id = i.event_id))
        ), inserted AS (
            INSERT INTO alert (seq, occurred_at, source, zone_id, user_id, status, camera_id, user_name, event_id, body)
            SELECT seq, occurred_at, source, zone_id, user_id, status, camera_id, user_name, event_id, body
            FROM numbered ORDER BY seq
        )
        SELECT array_agg(n.seq ORDER BY i.ordinal), count(n.seq) INTO seqs, count
            FROM incoming AS i LEFT JOIN numbered AS n USING (ordinal);
    ELSIF expected IS NULL THEN
        PERFORM insert_alerts(last, alerts);
    END IF;
    IF count > 0 THEN
        UPDATE alert_log SET last_seq = last + count;
        INSERT INTO alert_span AS s (number, earliest, latest)
            SELECT number, first_time, last_time FROM generate_series((last + 1) >> 12, (last + count) >> 12) AS number
                WHERE first_time IS NOT NULL
            ON CONFLICT (number) DO UPDATE
                SET earliest = least(s.earliest, excluded.earliest), latest = greatest(s.latest, excluded.latest)
                WHERE excluded.earliest < s.earliest OR excluded.latest > s.latest;
    END IF;
    last := last + count;
END $$;
