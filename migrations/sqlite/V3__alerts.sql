-- The alert log: dense numbers in commit order, each alert once, positions moved with the rows.

CREATE TABLE alert (
    seq INTEGER PRIMARY KEY,
    received_at INTEGER NOT NULL
        DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
    occurred_at INTEGER,
    source TEXT NOT NULL,
    zone_id TEXT,
    user_id TEXT,
    status TEXT,
    camera_id TEXT,
    user_name TEXT,
    event_id TEXT,
    -- The object as it came.
    body TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX alert_event ON alert (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX alert_by_zone ON alert (zone_id, seq) WHERE zone_id IS NOT NULL;
CREATE INDEX alert_by_user ON alert (user_id, seq) WHERE user_id IS NOT NULL;
CREATE INDEX alert_by_status ON alert (status, seq) WHERE status IS NOT NULL;
CREATE INDEX alert_by_camera ON alert (camera_id, seq) WHERE camera_id IS NOT NULL;

-- Where in the log alerts of a time are: those in each span of 4096 numbers are between these times. They come
-- nearly in order, so a window of time is a few neighbouring spans, read in the order of seq.
CREATE TABLE alert_span (
    number INTEGER PRIMARY KEY,
    earliest INTEGER NOT NULL,
    latest INTEGER NOT NULL
) STRICT;

CREATE TABLE alert_log (
    one INTEGER PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    last_seq INTEGER NOT NULL
) STRICT;
INSERT INTO alert_log (last_seq) VALUES (0);

CREATE TABLE kafka_offset (
    topic TEXT NOT NULL,
    "partition" INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    next INTEGER,
    PRIMARY KEY (topic, "partition")
) STRICT;

CREATE TABLE dead_letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    received_at INTEGER NOT NULL
        DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
    topic TEXT NOT NULL,
    "partition" INTEGER NOT NULL,
    "offset" INTEGER NOT NULL,
    reason TEXT NOT NULL,
    size INTEGER NOT NULL,
    raw BLOB NOT NULL
) STRICT;
