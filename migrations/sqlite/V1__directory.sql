-- People, zones and assignments. Times are integers: microseconds since 1970-01-01T00:00:00Z. SQLite's
-- own clock has milliseconds, so those it writes end in 000, or are one more than the time before.

CREATE TABLE "user" (
    -- AUTOINCREMENT: the id of a deleted user is never given again.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    global_id INTEGER NOT NULL UNIQUE,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
    updated_at INTEGER
) STRICT;

CREATE TABLE working_zone (
    zone_id TEXT NOT NULL PRIMARY KEY,
    zone_name TEXT NOT NULL,
    x1 REAL NOT NULL DEFAULT 0,
    y1 REAL NOT NULL DEFAULT 0,
    x2 REAL NOT NULL DEFAULT 0,
    y2 REAL NOT NULL DEFAULT 0,
    x3 REAL NOT NULL DEFAULT 0,
    y3 REAL NOT NULL DEFAULT 0,
    x4 REAL NOT NULL DEFAULT 0,
    y4 REAL NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
    updated_at INTEGER
) STRICT;

CREATE TABLE user_zone_association (
    -- The order in which assignments were made.
    position INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES "user" (id) ON DELETE CASCADE,
    zone_id TEXT NOT NULL REFERENCES working_zone (zone_id) ON DELETE CASCADE ON UPDATE CASCADE,
    created_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
    UNIQUE (user_id, zone_id)
) STRICT;
CREATE INDEX user_zone_association_by_zone ON user_zone_association (zone_id);

-- The sqlite3 shell does not enforce foreign keys unless it is told to; triggers it cannot forget.
CREATE TRIGGER user_zone_association_user BEFORE INSERT ON user_zone_association
WHEN NOT EXISTS (SELECT 1 FROM "user" WHERE id = NEW.user_id)
BEGIN
    SELECT RAISE(ABORT, 'user_zone_association: there is no such user');
END;
CREATE TRIGGER user_zone_association_zone BEFORE INSERT ON user_zone_association
WHEN NOT EXISTS (SELECT 1 FROM working_zone WHERE zone_id = NEW.zone_id)
BEGIN
    SELECT RAISE(ABORT, 'user_zone_association: there is no such zone');
END;
CREATE TRIGGER user_forget AFTER DELETE ON "user"
BEGIN
    DELETE FROM user_zone_association WHERE user_id = OLD.id;
END;
CREATE TRIGGER working_zone_forget AFTER DELETE ON working_zone
BEGIN
    DELETE FROM user_zone_association WHERE zone_id = OLD.zone_id;
END;
CREATE TRIGGER working_zone_rename AFTER UPDATE OF zone_id ON working_zone WHEN NEW.zone_id <> OLD.zone_id
BEGIN
    UPDATE user_zone_association SET zone_id = NEW.zone_id WHERE zone_id = OLD.zone_id;
END;

-- updated_at moves with every real change, whoever makes it, and never stands still or goes back.
CREATE TRIGGER user_touch AFTER UPDATE ON "user"
WHEN NEW.updated_at IS OLD.updated_at
    AND (NEW.id, NEW.global_id, NEW.name, NEW.created_at) IS NOT (OLD.id, OLD.global_id, OLD.name, OLD.created_at)
BEGIN
    UPDATE "user" SET updated_at = max(CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000,
        coalesce(updated_at, created_at) + 1)
    WHERE id = NEW.id;
END;
CREATE TRIGGER working_zone_touch AFTER UPDATE ON working_zone
WHEN NEW.updated_at IS OLD.updated_at
    AND (NEW.zone_id, NEW.zone_name, NEW.x1, NEW.y1, NEW.x2, NEW.y2, NEW.x3, NEW.y3, NEW.x4, NEW.y4, NEW.created_at)
    IS NOT (OLD.zone_id, OLD.zone_name, OLD.x1, OLD.y1, OLD.x2, OLD.y2, OLD.x3, OLD.y3, OLD.x4, OLD.y4, OLD.created_at)
BEGIN
    UPDATE working_zone SET updated_at = max(CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000,
        coalesce(updated_at, created_at) + 1)
    WHERE zone_id = NEW.zone_id;
END;

-- A change of its zones is a change of the user; not for users that were made together with it.
CREATE TRIGGER user_zone_association_touch_insert AFTER INSERT ON user_zone_association
BEGIN
    UPDATE "user" SET updated_at = max(CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000,
        coalesce(updated_at, created_at) + 1)
    WHERE id = NEW.user_id AND created_at <> NEW.created_at;
END;
CREATE TRIGGER user_zone_association_touch_update AFTER UPDATE ON user_zone_association
BEGIN
    UPDATE "user" SET updated_at = max(CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000,
        coalesce(updated_at, created_at) + 1)
    WHERE id IN (OLD.user_id, NEW.user_id);
END;
CREATE TRIGGER user_zone_association_touch_delete AFTER DELETE ON user_zone_association
BEGIN
    UPDATE "user" SET updated_at = max(CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000,
        coalesce(updated_at, created_at) + 1)
    WHERE id = OLD.user_id;
END;
