-- agent_role --
-- A role of its own for agents: it may read and write memories, and nothing else of this database.
-- Run this as a superuser, or as the owner of memories who may create roles: psql -v ON_ERROR_STOP=1 -f FILE
-- Then give it a password, in psql with \password :role, and have the agents' own clients connect as it. The program itself
-- keeps the role that it has, which owns what agents may not touch.
BEGIN;

SELECT pg_catalog.set_config('dionysus.agent', :'role', true), pg_catalog.set_config('dionysus.memories', :'memories', true);

DO $$
DECLARE
    agent name := pg_catalog.current_setting('dionysus.agent');
    target text := pg_catalog.current_setting('dionysus.memories');
BEGIN
    IF pg_catalog.to_regclass(target) IS NULL OR pg_catalog.to_regnamespace('dionysus_sync') IS NULL THEN
        RAISE EXCEPTION '% is not protected yet in database %', target, pg_catalog.current_database()
            USING HINT = 'Run ''dionysus-sync-mcp init'' first.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = agent) THEN
        EXECUTE pg_catalog.format('CREATE ROLE %I LOGIN', agent);
    END IF;
    IF NOT pg_catalog.has_database_privilege(agent, pg_catalog.current_database(), 'CONNECT') THEN
        EXECUTE pg_catalog.format('GRANT CONNECT ON DATABASE %I TO %I', pg_catalog.current_database(), agent);
    END IF;
END $$;

-- Whatever it was given before, and what everybody was given that goes further than reading and writing.
REVOKE ALL ON TABLE :memories FROM :role;
REVOKE TRUNCATE, REFERENCES, TRIGGER ON TABLE :memories FROM PUBLIC;
REVOKE CREATE ON SCHEMA :schema FROM :role;
REVOKE ALL ON SCHEMA dionysus_sync FROM PUBLIC, :role;
REVOKE ALL ON ALL TABLES IN SCHEMA dionysus_sync FROM PUBLIC, :role;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA dionysus_sync FROM PUBLIC, :role;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA dionysus_sync FROM PUBLIC, :role;

GRANT USAGE ON SCHEMA :schema TO :role;
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE :memories TO :role;

-- Sequences that columns of memories take their numbers from.
DO $$
DECLARE
    counted regclass;
BEGIN
    FOR counted IN
        SELECT DISTINCT link.refobjid::pg_catalog.regclass
        FROM pg_catalog.pg_attrdef AS made
            JOIN pg_catalog.pg_depend AS link ON link.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND link.objid = made.oid
            JOIN pg_catalog.pg_class AS numbers ON numbers.oid = link.refobjid AND numbers.relkind = 'S'
        WHERE made.adrelid = pg_catalog.to_regclass(pg_catalog.current_setting('dionysus.memories'))
          AND link.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    LOOP
        EXECUTE pg_catalog.format('GRANT USAGE ON SEQUENCE %s TO %I', counted, pg_catalog.current_setting('dionysus.agent'));
    END LOOP;
END $$;

-- What no grant can take away: what the role is, and whose member it is. Then nothing of the above counts. Each role that it is
-- a member of is asked by itself: one that it does not inherit from is one that it can become.
DO $$
DECLARE
    agent name := pg_catalog.current_setting('dionysus.agent');
    target regclass := pg_catalog.to_regclass(pg_catalog.current_setting('dionysus.memories'));
    role record;
    wrong text;
    may_set boolean := false;
BEGIN
    FOR role IN
        SELECT * FROM pg_catalog.pg_roles AS other WHERE pg_catalog.pg_has_role(agent, other.oid, 'MEMBER')
        ORDER BY other.rolname <> agent, other.rolname
    LOOP
        IF pg_catalog.current_setting('server_version_num')::integer >= 150000 THEN
            EXECUTE 'SELECT pg_catalog.has_parameter_privilege($1, ''session_replication_role'', ''SET'')' INTO may_set
                USING role.oid;
        END IF;
        wrong := CASE
            WHEN role.rolsuper THEN 'is a superuser'
            WHEN role.rolcreaterole THEN 'may give itself other roles (CREATEROLE)'
            WHEN role.rolbypassrls OR role.rolreplication THEN 'may bypass row security or replicate'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_database
                         WHERE datname = pg_catalog.current_database() AND pg_catalog.pg_has_role(role.oid, datdba, 'MEMBER'))
                THEN 'owns this database, or is a member of its owner'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_class AS t JOIN pg_catalog.pg_namespace AS s ON s.oid = t.relnamespace
                         WHERE t.oid = target AND (pg_catalog.pg_has_role(role.oid, t.relowner, 'MEMBER')
                                                   OR pg_catalog.pg_has_role(role.oid, s.nspowner, 'MEMBER')))
                THEN 'owns memories or its schema, or is a member of a role that does'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_namespace
                         WHERE nspname = 'dionysus_sync' AND pg_catalog.pg_has_role(role.oid, nspowner, 'MEMBER'))
                THEN 'owns dionysus_sync, or is a member of a role that does'
            WHEN pg_catalog.has_schema_privilege(role.oid, 'dionysus_sync', 'USAGE, CREATE')
                OR EXISTS (SELECT FROM pg_catalog.pg_class AS ours
                           WHERE ours.relnamespace = 'dionysus_sync'::pg_catalog.regnamespace AND ours.relkind IN ('r', 'p', 'v')
                             AND (pg_catalog.has_table_privilege(
                                      role.oid, ours.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
                                  OR pg_catalog.has_any_column_privilege(
                                      role.oid, ours.oid, 'SELECT, INSERT, UPDATE, REFERENCES')))
                THEN 'is a member of a role that may use dionysus_sync'
            WHEN pg_catalog.has_table_privilege(role.oid, target, 'TRUNCATE, TRIGGER, REFERENCES')
                THEN 'is a member of a role that may empty memories or put triggers on it'
            WHEN pg_catalog.pg_has_role(role.oid, 'pg_execute_server_program', 'MEMBER')
                OR pg_catalog.pg_has_role(role.oid, 'pg_write_server_files', 'MEMBER')
                THEN 'may write files of the server'
            WHEN may_set THEN 'may set session_replication_role'
            END;
        EXIT WHEN wrong IS NOT NULL;
    END LOOP;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'role % could still destroy memories: it %', agent,
            CASE WHEN role.rolname = agent THEN wrong ELSE pg_catalog.format('can become %I, which %s', role.rolname, wrong) END
            USING HINT = 'Choose another name, so that a new role is made.';
    END IF;
END $$;

COMMIT;

-- role_in_use --
-- What the role of this connection could do to memories, by itself or as a role that it can become, and login roles that may
-- write memories and can do nothing else to them.
SELECT current_user::text AS name,
       EXISTS (SELECT FROM pg_roles AS other WHERE other.rolsuper AND pg_has_role(current_user, other.oid, 'MEMBER')) AS superuser,
       coalesce((SELECT pg_has_role(current_user, relowner, 'MEMBER') FROM pg_class WHERE oid = to_regclass(:'memories')), false)
           AS owner,
       ARRAY(
           SELECT role.rolname::text FROM pg_roles AS role JOIN pg_class AS t ON t.oid = to_regclass(:'memories')
           WHERE role.rolcanlogin AND has_table_privilege(role.oid, t.oid, 'INSERT')
             AND NOT EXISTS (
                 SELECT FROM pg_roles AS other
                 WHERE pg_has_role(role.oid, other.oid, 'MEMBER')
                   AND (other.rolsuper OR other.rolcreaterole OR other.rolbypassrls OR other.rolreplication
                        OR pg_has_role(other.oid, t.relowner, 'MEMBER')
                        OR has_table_privilege(other.oid, t.oid, 'TRUNCATE, TRIGGER, REFERENCES')
                        OR has_schema_privilege(other.oid, 'dionysus_sync', 'USAGE, CREATE')))
           ORDER BY role.rolname LIMIT 5
       ) AS agents
