-- Which keys of the directory changed, in commit order: SQLite has one writer at a time, so numbers are
-- given in the order of commits. A moment is the last number of the log.
--
-- Numbers grow by random steps. A file that was restored from an older copy, or copied and written to
-- on its own, goes on with other numbers than the file it came from, so a moment of the one is not
-- found in the log of the other (one chance in a million for each change) and is not mistaken for its past.

CREATE TABLE directory_change (
    seq INTEGER PRIMARY KEY,
    -- A row without any key means: everything.
    user_id INTEGER,
    global_id INTEGER,
    zone_id TEXT
) STRICT;
INSERT INTO directory_change (seq) VALUES (1 + (random() & 1048575));

CREATE TABLE directory_epoch (
    one INTEGER PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    born INTEGER NOT NULL
) STRICT;
INSERT INTO directory_epoch (born) VALUES (random() & 0x0fffffffffffffff);

-- What writes to the log; it gives each row its number.
CREATE VIEW directory_changed AS SELECT user_id, global_id, zone_id FROM directory_change;
CREATE TRIGGER directory_changed_insert INSTEAD OF INSERT ON directory_changed
BEGIN
    INSERT INTO directory_change (seq, user_id, global_id, zone_id) VALUES (
        (SELECT coalesce(max(seq), 0) FROM directory_change) + 1 + (random() & 1048575), NEW.user_id, NEW.global_id, NEW.zone_id
    );
END;

-- INSERT OR REPLACE deletes the row in its way without a trigger.
CREATE TRIGGER directory_log_user_replace BEFORE INSERT ON "user"
WHEN EXISTS (SELECT 1 FROM "user" WHERE global_id = NEW.global_id OR id = NEW.id)
BEGIN
    INSERT INTO directory_changed (user_id, global_id)
    SELECT id, global_id FROM "user" WHERE global_id = NEW.global_id OR id = NEW.id;
END;
CREATE TRIGGER directory_log_user_displace BEFORE UPDATE OF id, global_id ON "user"
WHEN EXISTS (SELECT 1 FROM "user" WHERE (global_id = NEW.global_id OR id = NEW.id) AND id <> OLD.id)
BEGIN
    INSERT INTO directory_changed (user_id, global_id)
    SELECT id, global_id FROM "user" WHERE (global_id = NEW.global_id OR id = NEW.id) AND id <> OLD.id;
END;
CREATE TRIGGER directory_log_user_insert AFTER INSERT ON "user"
BEGIN
    INSERT INTO directory_changed (user_id, global_id) VALUES (NEW.id, NEW.global_id);
END;
CREATE TRIGGER directory_log_user_delete AFTER DELETE ON "user"
BEGIN
    INSERT INTO directory_changed (user_id, global_id) VALUES (OLD.id, OLD.global_id);
END;
-- Every real change moves updated_at, so the touch is what is logged; the old keys beside it.
CREATE TRIGGER directory_log_user_update AFTER UPDATE ON "user" WHEN NEW.updated_at IS NOT OLD.updated_at
BEGIN
    INSERT INTO directory_changed (user_id, global_id) VALUES (NEW.id, NEW.global_id);
END;
CREATE TRIGGER directory_log_user_rekey AFTER UPDATE OF id, global_id ON "user"
WHEN (NEW.id, NEW.global_id) IS NOT (OLD.id, OLD.global_id)
BEGIN
    INSERT INTO directory_changed (user_id, global_id) VALUES (OLD.id, OLD.global_id);
END;

CREATE TRIGGER directory_log_zone_insert AFTER INSERT ON working_zone
BEGIN
    INSERT INTO directory_changed (zone_id) VALUES (NEW.zone_id);
END;
CREATE TRIGGER directory_log_zone_delete AFTER DELETE ON working_zone
BEGIN
    INSERT INTO directory_changed (zone_id) VALUES (OLD.zone_id);
END;
CREATE TRIGGER directory_log_zone_update AFTER UPDATE ON working_zone WHEN NEW.updated_at IS NOT OLD.updated_at
BEGIN
    INSERT INTO directory_changed (zone_id) VALUES (NEW.zone_id);
END;
CREATE TRIGGER directory_log_zone_rename AFTER UPDATE OF zone_id ON working_zone WHEN NEW.zone_id <> OLD.zone_id
BEGIN
    INSERT INTO directory_changed (zone_id) VALUES (OLD.zone_id);
END;

CREATE TRIGGER directory_log_assignment_insert AFTER INSERT ON user_zone_association
BEGIN
    INSERT INTO directory_changed (user_id) VALUES (NEW.user_id);
END;
CREATE TRIGGER directory_log_assignment_delete AFTER DELETE ON user_zone_association
BEGIN
    INSERT INTO directory_changed (user_id) VALUES (OLD.user_id);
END;
CREATE TRIGGER directory_log_assignment_update AFTER UPDATE ON user_zone_association
BEGIN
    INSERT INTO directory_changed (user_id) VALUES (NEW.user_id);
    INSERT INTO directory_changed (user_id) SELECT OLD.user_id WHERE OLD.user_id <> NEW.user_id;
END;
