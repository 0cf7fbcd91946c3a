-- Which keys of the directory a transaction changed. A moment is a snapshot (xmin, xmax, running);
-- what became visible after it are the rows with xid >= xmax or xid among the running ones.

CREATE TABLE directory_change (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    user_id bigint,
    global_id bigint,
    zone_id text COLLATE "C"
);
COMMENT ON TABLE directory_change IS 'Changed keys by transaction; a row without any key means: everything';
CREATE INDEX directory_change_xid ON directory_change (xid);

-- UNLOGGED on purpose: crash recovery and promotion empty it, and that is how they are noticed.
CREATE UNLOGGED TABLE directory_epoch (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    born bigint NOT NULL,
    -- Rows of the log below this transaction may have been trimmed.
    floor xid8 NOT NULL DEFAULT '0',
    -- Where the row was made, and by which run of the server: a dump that is restored elsewhere, or a copy
    -- of the files, brings the row, but not its place.
    home text NOT NULL
);

-- In plpgsql, which plans it once for a session; sql would for every validation.
CREATE FUNCTION directory_home() RETURNS text LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
        extract(epoch FROM pg_postmaster_start_time()),
        (SELECT oid FROM pg_database WHERE datname = current_database()), 'directory_epoch'::regclass::oid);
END $$;

-- Begins a new epoch where the old one is gone or is another place's.
CREATE FUNCTION directory_ensure_epoch() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM directory_epoch WHERE home = directory_home()) THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(7230211, 2);
    IF EXISTS (SELECT 1 FROM directory_epoch WHERE home = directory_home()) THEN
        RETURN;
    END IF;
    DELETE FROM directory_epoch;
    -- A restored log has the transaction numbers of another server; every load comes after this.
    DELETE FROM directory_change;
    INSERT INTO directory_epoch (born, home)
    VALUES (('x' || left(md5(random()::text || clock_timestamp()::text || pg_backend_pid()::text), 15))::bit(60)::bigint,
        directory_home());
END $$;

-- Begins a new epoch because the log is known to have missed something: whoever holds a moment of the
-- old one, here or elsewhere, is given everything.
CREATE FUNCTION directory_begin_epoch() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    DELETE FROM directory_epoch;
    SELECT directory_ensure_epoch();
$$;

CREATE FUNCTION directory_log_users() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO directory_change (user_id, global_id) SELECT id, global_id FROM after;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO directory_change (user_id, global_id) SELECT id, global_id FROM before;
    ELSE
        -- Both sides, because an UPDATE may change the keys themselves.
        INSERT INTO directory_change (user_id, global_id)
        SELECT DISTINCT id, global_id FROM
            ((TABLE before EXCEPT TABLE after) UNION ALL (TABLE after EXCEPT TABLE before)) AS changed;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION directory_log_zones() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO directory_change (zone_id) SELECT zone_id FROM after;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO directory_change (zone_id) SELECT zone_id FROM before;
    ELSE
        INSERT INTO directory_change (zone_id)
        SELECT DISTINCT zone_id FROM
            ((TABLE before EXCEPT TABLE after) UNION ALL (TABLE after EXCEPT TABLE before)) AS changed;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION directory_log_assignments() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO directory_change (user_id) SELECT DISTINCT user_id FROM after;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO directory_change (user_id) SELECT DISTINCT user_id FROM before;
    ELSE
        INSERT INTO directory_change (user_id) SELECT user_id FROM before UNION SELECT user_id FROM after;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION directory_log_everything() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO directory_change DEFAULT VALUES;
    RETURN NULL;
END $$;

-- ALWAYS: also in sessions that replicate or restore (session_replication_role = replica).
DO $$
DECLARE logged record;
BEGIN
    FOR logged IN SELECT * FROM (VALUES
        ('user', 'directory_log_users'),
        ('working_zone', 'directory_log_zones'),
        ('user_zone_association', 'directory_log_assignments')
    ) AS tables(relation, function)
    LOOP
        EXECUTE format('CREATE TRIGGER directory_log_insert AFTER INSERT ON %I REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION %I()', logged.relation, logged.function);
        EXECUTE format('CREATE TRIGGER directory_log_update AFTER UPDATE ON %I REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION %I()', logged.relation, logged.function);
        EXECUTE format('CREATE TRIGGER directory_log_delete AFTER DELETE ON %I REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION %I()', logged.relation, logged.function);
        EXECUTE format('CREATE TRIGGER directory_log_truncate AFTER TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION directory_log_everything()', logged.relation);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER directory_log_insert', logged.relation);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER directory_log_update', logged.relation);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER directory_log_delete', logged.relation);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER directory_log_truncate', logged.relation);
    END LOOP;
END $$;

-- What a subscription applies fires the triggers of rows alone, and only those made for replicas. In the
-- other sessions these cost nothing.
CREATE FUNCTION directory_log_row() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_TABLE_NAME = 'user' THEN
        IF TG_OP <> 'INSERT' THEN INSERT INTO directory_change (user_id, global_id) VALUES (OLD.id, OLD.global_id); END IF;
        IF TG_OP <> 'DELETE' THEN INSERT INTO directory_change (user_id, global_id) VALUES (NEW.id, NEW.global_id); END IF;
    ELSIF TG_TABLE_NAME = 'working_zone' THEN
        IF TG_OP <> 'INSERT' THEN INSERT INTO directory_change (zone_id) VALUES (OLD.zone_id); END IF;
        IF TG_OP <> 'DELETE' THEN INSERT INTO directory_change (zone_id) VALUES (NEW.zone_id); END IF;
    ELSE
        IF TG_OP <> 'INSERT' THEN INSERT INTO directory_change (user_id) VALUES (OLD.user_id); END IF;
        IF TG_OP <> 'DELETE' THEN INSERT INTO directory_change (user_id) VALUES (NEW.user_id); END IF;
    END IF;
    RETURN NULL;
END $$;
DO $$
DECLARE logged text;
BEGIN
    FOREACH logged IN ARRAY ARRAY['user', 'working_zone', 'user_zone_association'] LOOP
        EXECUTE format('CREATE TRIGGER directory_log_row AFTER INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION directory_log_row()', logged);
        EXECUTE format('ALTER TABLE %I ENABLE REPLICA TRIGGER directory_log_row', logged);
    END LOOP;
END $$;

-- A temporary table of the same name must not stand in for ours: without this it would come first.
DO $$
DECLARE made regprocedure;
BEGIN
    FOR made IN
        SELECT oid FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
            AND (proname LIKE 'directory\_%' OR proname IN ('touch_row', 'touch_users_of_assignments'))
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', made, current_schema());
    END LOOP;
END $$;
