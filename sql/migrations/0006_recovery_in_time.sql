-- What a recovery overwrote, so that it can be undone: the row's image before, and the hash of what was put in its place.
CREATE TABLE IF NOT EXISTS dionysus_sync.recovery_undo (
    recovery_id uuid NOT NULL,
    memory_id uuid NOT NULL,
    image jsonb NOT NULL,
    written_hash text NOT NULL,
    overwritten_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    undone_at timestamptz,
    PRIMARY KEY (recovery_id, memory_id)
);
CREATE INDEX IF NOT EXISTS idx_recovery_undo_overwritten ON dionysus_sync.recovery_undo (overwritten_at DESC);

-- Recoveries into a scratch schema, compared and thrown away.
CREATE TABLE IF NOT EXISTS dionysus_sync.drills (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    result varchar(10) NOT NULL CHECK (result IN ('passed', 'failed', 'skipped')),
    report jsonb NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_drills_finished ON dionysus_sync.drills (finished_at DESC);

-- Who else than the owner may do what; the role is empty for everybody.
CREATE OR REPLACE FUNCTION dionysus_sync.grants_in(acl aclitem[], owner oid) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object('role', coalesce(r.rolname, ''), 'privilege', g.privilege_type,
                                                 'grantable', g.is_grantable)
                              ORDER BY r.rolname, g.privilege_type), '[]')
    FROM aclexplode(acl) AS g LEFT JOIN pg_roles AS r ON r.oid = g.grantee
    WHERE g.grantee <> owner AND (g.grantee = 0 OR r.oid IS NOT NULL)
$$;

-- The types that a column's type is made of and that could go with their schema, in the order in which they can be made.
CREATE OR REPLACE FUNCTION dionysus_sync.types_in(wanted oid) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE needed (id, depth) AS (
        SELECT wanted, 0
        UNION ALL
        SELECT part.id, needed.depth + 1
        FROM needed JOIN pg_type AS t ON t.oid = needed.id CROSS JOIN LATERAL (
            SELECT t.typelem AS id WHERE t.typcategory = 'A' AND t.typelem <> 0
            UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
            UNION ALL SELECT a.atttypid FROM pg_attribute AS a
                      WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        ) AS part
    )
    SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
        'schema', place.nspname, 'name', t.typname, 'kind', t.typtype,
        'labels', (SELECT jsonb_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum AS e WHERE e.enumtypid = t.oid),
        'attributes', (
            SELECT jsonb_agg(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum)
            FROM pg_attribute AS a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped),
        'base', CASE t.typtype WHEN 'd' THEN format_type(t.typbasetype, t.typtypmod) END,
        'not_null', CASE t.typtype WHEN 'd' THEN t.typnotnull END,
        'default', CASE t.typtype WHEN 'd' THEN pg_get_expr(t.typdefaultbin, 0) END,
        'checks', (
            SELECT jsonb_agg(jsonb_build_object('name', c.conname, 'definition', pg_get_constraintdef(c.oid)) ORDER BY c.conname)
            FROM pg_constraint AS c WHERE c.contypid = t.oid AND c.contype = 'c')
        )) ORDER BY used.depth DESC, t.oid)
    FROM (SELECT id, max(depth) AS depth FROM needed GROUP BY id) AS used
        JOIN pg_type AS t ON t.oid = used.id JOIN pg_namespace AS place ON place.oid = t.typnamespace
        LEFT JOIN pg_class AS rows_of ON rows_of.oid = t.typrelid
    WHERE place.nspname <> 'pg_catalog' AND (t.typtype IN ('e', 'd') OR rows_of.relkind = 'c')
      AND NOT EXISTS (SELECT FROM pg_depend AS link
                      WHERE link.classid = 'pg_type'::regclass AND link.objid = t.oid AND link.deptype = 'e')
$$;

-- A type of PostgreSQL's own in which a value looks the same as JSON as in `wanted`.
CREATE OR REPLACE FUNCTION dionysus_sync.type_like(wanted oid, modifier integer) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
BEGIN
    SELECT typnamespace, typtype, typcategory, typbasetype, typtypmod INTO t FROM pg_type WHERE oid = wanted;
    RETURN CASE
        WHEN t.typnamespace = 'pg_catalog'::regnamespace THEN format_type(wanted, modifier)
        WHEN t.typtype = 'd' THEN dionysus_sync.type_like(t.typbasetype, t.typtypmod)
        WHEN t.typtype = 'c' OR t.typcategory = 'A'
            OR EXISTS (SELECT FROM pg_cast WHERE castsource = wanted AND casttarget = 'json'::regtype) THEN 'jsonb'
        ELSE 'text' END;
END $$;

-- As in 0003; and what else belongs to the table: its owner and who may use it, how its numbers are counted, types that could
-- go with the schema, the user's own triggers, row security, comments, foreign keys of other tables, and views of it, of which
-- no more than the names is kept. `seen_at` is by this clock,
-- since it is compared with when an incident was.
CREATE OR REPLACE FUNCTION dionysus_sync.definition_of(target regclass) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
    SELECT jsonb_build_object(
        'seen_at', clock_timestamp(),
        'columns', (
            SELECT jsonb_agg(jsonb_build_object(
                'name', a.attname,
                'type', format_type(a.atttypid, a.atttypmod),
                'not_null', a.attnotnull,
                'identity', a.attidentity,
                'generated', a.attgenerated,
                'default', pg_get_expr(d.adbin, d.adrelid)) || jsonb_strip_nulls(jsonb_build_object(
                'collation', CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END,
                'counting', (
                    SELECT jsonb_build_object('increment', s.seqincrement, 'minimum', s.seqmin, 'maximum', s.seqmax,
                                              'start', s.seqstart, 'cycle', s.seqcycle)
                    FROM pg_sequence AS s
                    WHERE a.attidentity <> '' AND s.seqrelid = pg_get_serial_sequence(target::text, a.attname)::regclass),
                'types', CASE WHEN place.nspname <> 'pg_catalog' THEN dionysus_sync.types_in(t.oid) END,
                'like', CASE WHEN place.nspname <> 'pg_catalog' THEN dionysus_sync.type_like(t.oid, a.atttypmod) END,
                'late', (
                    SELECT true FROM pg_depend AS link
                    WHERE a.attgenerated <> '' AND link.refobjid = target AND link.refobjsubid > a.attnum
                      AND (link.classid = 'pg_attrdef'::regclass AND link.objid = d.oid
                           OR link.classid = 'pg_class'::regclass AND link.objid = target AND link.objsubid = a.attnum)
                    LIMIT 1),
                'grants', nullif(dionysus_sync.grants_in(a.attacl, c.relowner), '[]'),
                'comment', col_description(a.attrelid, a.attnum),
                'extension', (
                    SELECT jsonb_build_object('name', e.extname, 'schema', home.nspname)
                    FROM pg_depend AS link JOIN pg_extension AS e ON e.oid = link.refobjid
                        JOIN pg_namespace AS home ON home.oid = e.extnamespace
                    WHERE link.classid = 'pg_type'::regclass AND link.objid = t.oid AND link.deptype = 'e'))
                ) ORDER BY a.attnum)
            FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                JOIN pg_type AS t ON t.oid = a.atttypid JOIN pg_namespace AS place ON place.oid = t.typnamespace
            WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped),
        'constraints', coalesce((
            SELECT jsonb_agg(jsonb_build_object('name', c.conname, 'definition', pg_get_constraintdef(c.oid))
                             ORDER BY c.contype = 'f', c.conname)
            FROM pg_constraint c WHERE c.conrelid = target AND c.contype IN ('p', 'u', 'c', 'f', 'x')), '[]'),
        'indexes', coalesce((
            SELECT jsonb_agg(pg_get_indexdef(i.indexrelid) ORDER BY i.indexrelid::regclass::text)
            FROM pg_index i
            WHERE i.indrelid = target
              AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)), '[]'),
        'triggers', coalesce((
            SELECT jsonb_agg(jsonb_build_object('name', t.tgname, 'definition', pg_get_triggerdef(t.oid),
                                                'enabled', t.tgenabled) ORDER BY t.tgname)
            FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
            WHERE t.tgrelid = target AND NOT t.tgisinternal
              AND p.pronamespace IS DISTINCT FROM to_regnamespace('dionysus_sync')), '[]'),
        'referenced_by', coalesce((
            SELECT jsonb_agg(jsonb_build_object('schema', place.nspname, 'table', other.relname, 'name', c.conname,
                                                'definition', pg_get_constraintdef(c.oid))
                             ORDER BY place.nspname, other.relname, c.conname)
            FROM pg_constraint AS c JOIN pg_class AS other ON other.oid = c.conrelid
                JOIN pg_namespace AS place ON place.oid = other.relnamespace
            WHERE c.confrelid = target AND c.contype = 'f' AND c.conrelid <> target AND c.conparentid = 0), '[]'),
        'policies', coalesce((
            SELECT jsonb_agg(jsonb_build_object(
                'name', p.polname, 'permissive', p.polpermissive, 'command', p.polcmd,
                'roles', (SELECT jsonb_agg(coalesce(r.rolname, '') ORDER BY r.rolname)
                          FROM unnest(p.polroles) AS one (id) LEFT JOIN pg_roles AS r ON r.oid = one.id),
                'using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid))
                ORDER BY p.polname)
            FROM pg_policy AS p WHERE p.polrelid = target), '[]'),
        'views', coalesce((
            SELECT jsonb_agg(DISTINCT format('%I.%I', place.nspname, other.relname))
            FROM pg_depend AS link JOIN pg_rewrite AS rule ON rule.oid = link.objid
                JOIN pg_class AS other ON other.oid = rule.ev_class JOIN pg_namespace AS place ON place.oid = other.relnamespace
            WHERE link.classid = 'pg_rewrite'::regclass AND link.refclassid = 'pg_class'::regclass AND link.refobjid = target
              AND other.relkind IN ('v', 'm')), '[]'),
        'comment', obj_description(target, 'pg_class'),
        'replica_identity', jsonb_build_object('kind', c.relreplident, 'index', (
            SELECT i.indexrelid::regclass::text FROM pg_index AS i WHERE i.indrelid = target AND i.indisreplident)),
        'row_security', c.relrowsecurity,
        'forced', c.relforcerowsecurity,
        'owner', pg_get_userbyid(c.relowner),
        'grants', dionysus_sync.grants_in(c.relacl, c.relowner),
        'schema', jsonb_build_object('owner', pg_get_userbyid(n.nspowner),
                                     'grants', dionysus_sync.grants_in(n.nspacl, n.nspowner))
    )
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = target
$$;

-- A definition comes out of the remote store, so its words are PostgreSQL's own only as long as nobody has been at them.
-- Without its strings, quoted names and what stands in brackets: what is left must not begin anything else.
CREATE OR REPLACE FUNCTION dionysus_sync.bare_words(words text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    bare text := regexp_replace(words, '''(?:[^'']|'''')*''|"(?:[^"]|"")*"', '''''', 'g');
    shorter text;
BEGIN
    IF words ~* 'dionysus_sync' THEN
        RAISE EXCEPTION 'something of the bookkeeping in %', left(words, 100);
    END IF;
    -- Strings of other kinds than PostgreSQL's own words have could end elsewhere than it looks.
    IF bare ~ '[eE&]''''|--|/\*|\$' THEN
        RAISE EXCEPTION 'words that are not PostgreSQL''s own in %', left(words, 100);
    END IF;
    LOOP
        shorter := regexp_replace(bare, '\([^][()]*\)|\[[^][()]*\]', ' ', 'g');
        EXIT WHEN shorter = bare;
        bare := shorter;
    END LOOP;
    IF bare ~ '[][();]' THEN
        RAISE EXCEPTION 'a semicolon or a bracket in %', left(words, 100);
    END IF;
    RETURN bare;
END $$;

-- As in 0003; but a string may hold what it likes, and no further clause can follow either.
CREATE OR REPLACE FUNCTION dionysus_sync.one_statement(words text) RETURNS text
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF strpos(dionysus_sync.bare_words(words), ',') > 0 THEN
        RAISE EXCEPTION 'more than one clause in %', left(words, 100);
    END IF;
    RETURN words;
END $$;

-- The first function of an expression that nobody should have run for him by what a remote store says; null for none. None
-- that changes or reads anything, and none of ours. Only what PostgreSQL has made of the words says which function each is.
CREATE OR REPLACE FUNCTION dionysus_sync.untamed(tree text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.oid::regprocedure::text
    FROM regexp_matches(tree, ':[a-z]*(?:funcid|fnoid) ([0-9]+)', 'g') AS found (parts)
        JOIN pg_proc AS p ON p.oid = found.parts[1]::oid
    WHERE p.pronamespace = to_regnamespace('dionysus_sync') OR p.proname ~ '_to_xml'
       OR p.provolatile = 'v' AND NOT (
           p.proname IN ('nextval', 'clock_timestamp', 'timeofday', 'random', 'gen_random_uuid', 'uuidv4', 'uuidv7',
                         'uuid_generate_v1', 'uuid_generate_v1mc', 'uuid_generate_v4', 'gen_random_bytes')
           AND (p.pronamespace = 'pg_catalog'::regnamespace
                OR EXISTS (SELECT FROM pg_depend AS link WHERE link.classid = 'pg_proc'::regclass AND link.objid = p.oid
                           AND link.deptype = 'e')))
    ORDER BY 1 LIMIT 1
$$;

-- Fails where an expression that was just made of noted words has such a function.
CREATE OR REPLACE FUNCTION dionysus_sync.check_tame(VARIADIC trees text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tree text;
BEGIN
    FOREACH tree IN ARRAY trees LOOP
        IF dionysus_sync.untamed(tree) IS NOT NULL THEN
            RAISE EXCEPTION 'it would call %', dionysus_sync.untamed(tree);
        END IF;
    END LOOP;
END $$;

-- The expression of a noted CHECK in brackets, so that nothing can follow it; and what follows that.
CREATE OR REPLACE FUNCTION dionysus_sync.check_in(words text) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY['CHECK (' || parts[1] || ')' || coalesce(parts[2], ''), coalesce(parts[3], '')]
    FROM regexp_match(dionysus_sync.one_statement(words),
                      '^CHECK (\(.*\))( NO INHERIT)?( NOT VALID| NOT ENFORCED)?$') AS parts
$$;

-- Gives a column its default; null, or why not. It is looked at before it is computed for any row.
CREATE OR REPLACE FUNCTION dionysus_sync.give_default(target text, name text, words text) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT (%s)', target, name, dionysus_sync.one_statement(words));
    PERFORM dionysus_sync.check_tame(dionysus_sync.default_of(target, name)::text);
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN SQLERRM;
END $$;

CREATE OR REPLACE FUNCTION dionysus_sync.default_of(target text, name text) RETURNS pg_node_tree
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT d.adbin FROM pg_attrdef AS d JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE a.attrelid = target::regclass AND a.attname = default_of.name
$$;

-- Runs a statement; null, or why it could not be.
CREATE OR REPLACE FUNCTION dionysus_sync.attempt(what text, words text) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE words;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN format('%s: %s', what, SQLERRM);
END $$;

-- Makes `target_name` what a definition says, but for what fires or looks at other rows: see `complete_table`. What it has
-- and the definition has not stays. Returns what could not be made: the rows matter more than the ornament.
CREATE OR REPLACE FUNCTION dionysus_sync.rebuild_table(
    target_schema text, target_name text, definition jsonb, retyped text[]
) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target text := format('%I.%I', target_schema, target_name);
    made boolean := to_regclass(target) IS NULL;
    bearing CONSTANT text := '^CREATE (?:UNIQUE )?INDEX ("(?:[^"]|"")+"|[^\s"]+) ON';
    named CONSTANT text := '^(CREATE (?:UNIQUE )?INDEX) (?:"(?:[^"]|"")+"|[^\s"]+) ON';
    part jsonb;
    faults text[] := '{}';
BEGIN
    IF to_regnamespace(quote_ident(target_schema)) IS NULL THEN
        EXECUTE format('CREATE SCHEMA %I', target_schema);
        faults := faults || dionysus_sync.give_again('SCHEMA', quote_ident(target_schema), definition -> 'schema');
    END IF;
    IF made THEN
        EXECUTE format('CREATE TABLE %s ()', target);
    END IF;
    -- What is computed from columns that stood after it comes after them now.
    FOR part IN SELECT value FROM jsonb_array_elements(definition -> 'columns') WITH ORDINALITY AS one (value, number)
                ORDER BY value -> 'late' IS NOT NULL, number LOOP
        IF NOT EXISTS (SELECT FROM pg_attribute AS present WHERE present.attrelid = target::regclass
                       AND present.attname = part ->> 'name' AND NOT present.attisdropped) THEN
            CONTINUE WHEN NOT made AND part ->> 'name' = ANY (dionysus_sync.sync_columns());
            faults := faults || dionysus_sync.make_column(target, part, made);
        ELSIF part ->> 'name' = ANY (retyped) THEN
            faults := faults || dionysus_sync.widen_column(target, part);
        END IF;
    END LOOP;
    FOR part IN SELECT * FROM jsonb_array_elements(definition -> 'constraints') LOOP
        faults := faults || dionysus_sync.make_constraint(target, part ->> 'name', part ->> 'definition');
    END LOOP;
    FOR part IN SELECT * FROM jsonb_array_elements(definition -> 'indexes') LOOP
        -- Those that the installation makes, unless a table that was renamed has their names.
        CONTINUE WHEN part #>> '{}' ~ '^CREATE INDEX idx_memories_sync_(status|version) ON '
                AND NOT dionysus_sync.name_taken(target, substring(part #>> '{}' from 'idx_memories_sync_[a-z]+'))
            -- By its name, too: PostgreSQL writes a condition that it has read in other words than those it was made with.
            OR EXISTS (SELECT FROM pg_index WHERE indrelid = target::regclass AND (
                substring(pg_get_indexdef(indexrelid) from bearing) = substring(part #>> '{}' from bearing)
                OR regexp_replace(pg_get_indexdef(indexrelid), named, '\1 ON') = regexp_replace(part #>> '{}', named, '\1 ON')));
        faults := faults || dionysus_sync.make_index(target, part #>> '{}');
    END LOOP;
    faults := faults || dionysus_sync.give_again('TABLE', target, definition);
    RETURN array_remove(faults, NULL);
END $$;

-- A column with its type and default. Its type is made first where it went with its schema.
CREATE OR REPLACE FUNCTION dionysus_sync.make_column(target text, col jsonb, required boolean) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := quote_ident(col ->> 'name');
    wanted text := coalesce(col ->> 'type', 'text');
    made text;
    fault text;
    faults text[] := '{}';
BEGIN
    made := dionysus_sync.type_of(col);
    IF made IS NULL THEN
        made := CASE WHEN to_regtype(col ->> 'like') IS NOT NULL THEN col ->> 'like' ELSE 'text' END;
        faults := faults || format('column %s is %s now: there is no type %s', name, made, left(wanted, 100));
    END IF;
    BEGIN
        EXECUTE format('ALTER TABLE %s ADD COLUMN %s %s %s %s %s', target, name, made,
            'COLLATE ' || (to_regcollation(col ->> 'collation')::text),
            CASE
                WHEN col ->> 'generated' <> '' THEN format('GENERATED ALWAYS AS (%s) %s',
                    dionysus_sync.one_statement(col ->> 'default'),
                    CASE col ->> 'generated' WHEN 'v' THEN 'VIRTUAL' ELSE 'STORED' END)
                WHEN col ->> 'identity' <> '' THEN format('GENERATED %s AS IDENTITY %s',
                    CASE col ->> 'identity' WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END,
                    dionysus_sync.counting_of(col -> 'counting'))
            END,
            CASE WHEN required AND (col ->> 'not_null')::boolean THEN 'NOT NULL' END);
        PERFORM dionysus_sync.check_tame(dionysus_sync.default_of(target, col ->> 'name')::text);
    EXCEPTION WHEN OTHERS THEN
        fault := SQLERRM;
    END;
    IF fault IS NOT NULL THEN
        RETURN faults || format('column %s has no default now: %s', name, fault) || dionysus_sync.attempt(
            format('column %s was left out', name), format('ALTER TABLE %s ADD COLUMN %s %s', target, name, made));
    END IF;
    IF col ->> 'default' IS NULL OR col ->> 'generated' <> '' OR col ->> 'identity' <> '' THEN
        RETURN faults;
    END IF;
    fault := dionysus_sync.give_default(target, col ->> 'name', col ->> 'default');
    -- A serial column's sequence is gone with the table that owned it.
    IF fault IS NOT NULL AND col ->> 'default' LIKE 'nextval(%' AND made IN ('smallint', 'integer', 'bigint') THEN
        RETURN faults || dionysus_sync.attempt(format('column %s has no default now', name), format(
            'ALTER TABLE %1$s DROP COLUMN %2$s, ADD COLUMN %2$s %3$s GENERATED BY DEFAULT AS IDENTITY', target, name, made));
    END IF;
    IF fault IS NOT NULL THEN
        RETURN faults || format('column %s has no default now: %s', name, fault);
    END IF;
    -- Rows that are there get it too: in PostgreSQL's own words by now.
    IF NOT required THEN
        faults := faults || dionysus_sync.attempt(format('column %s is not filled', name), format(
            'ALTER TABLE %1$s DROP COLUMN %2$s, ADD COLUMN %2$s %3$s %4$s DEFAULT %5$s', target, name, made,
            'COLLATE ' || (to_regcollation(col ->> 'collation')::text),
            pg_get_expr(dionysus_sync.default_of(target, col ->> 'name'), target::regclass)));
    END IF;
    RETURN faults;
END $$;

-- A type that went with its schema.
CREATE OR REPLACE FUNCTION dionysus_sync.make_type(noted jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := format('%I.%I', noted ->> 'schema', noted ->> 'name');
    part jsonb;
BEGIN
    IF to_regtype(name) IS NOT NULL THEN
        RETURN;
    END IF;
    IF noted ->> 'kind' = 'e' THEN
        EXECUTE format('CREATE TYPE %s AS ENUM (%s)', name, (
            SELECT string_agg(quote_literal(label), ', ' ORDER BY number)
            FROM jsonb_array_elements_text(noted -> 'labels') WITH ORDINALITY AS one (label, number)));
    ELSIF noted ->> 'kind' = 'c' THEN
        EXECUTE format('CREATE TYPE %s AS (%s)', name, (
            SELECT string_agg(format('%I %s', one.value ->> 'name', dionysus_sync.known_type(one.value ->> 'type')), ', '
                              ORDER BY one.number)
            FROM jsonb_array_elements(noted -> 'attributes') WITH ORDINALITY AS one (value, number)));
    ELSE
        EXECUTE format('CREATE DOMAIN %s AS %s %s', name, dionysus_sync.known_type(noted ->> 'base'),
                       CASE WHEN (noted ->> 'not_null')::boolean THEN 'NOT NULL' END);
        IF noted ->> 'default' IS NOT NULL THEN
            EXECUTE format('ALTER DOMAIN %s SET DEFAULT (%s)', name, dionysus_sync.one_statement(noted ->> 'default'));
        END IF;
        FOR part IN SELECT * FROM jsonb_array_elements(noted -> 'checks') LOOP
            EXECUTE format('ALTER DOMAIN %s ADD CONSTRAINT %I %s', name, part ->> 'name',
                           (dionysus_sync.check_in(part ->> 'definition'))[1]);
        END LOOP;
        PERFORM dionysus_sync.check_tame(t.typdefaultbin::text) FROM pg_type AS t WHERE t.oid = to_regtype(name);
        PERFORM dionysus_sync.check_tame(c.conbin::text) FROM pg_constraint AS c WHERE c.contypid = to_regtype(name);
    END IF;
END $$;

-- The name of a type of this database, as it was given; fails where it is none.
CREATE OR REPLACE FUNCTION dionysus_sync.known_type(wanted text) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF to_regtype(wanted) IS NULL OR wanted ~ '--|/\*' THEN
        RAISE EXCEPTION 'there is no type %', left(wanted, 100);
    END IF;
    RETURN wanted;
END $$;

-- The name of a column's type as this database knows it; null where it does not, and cannot be made to. An extension is
-- made only if it is one that anybody may make, and has that type.
CREATE OR REPLACE FUNCTION dionysus_sync.type_of(col jsonb) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted text := coalesce(col ->> 'type', 'text');
BEGIN
    IF to_regtype(wanted) IS NULL AND col -> 'extension' IS NOT NULL
        AND EXISTS (SELECT FROM pg_available_extensions AS e JOIN pg_available_extension_versions AS v
                        ON v.name = e.name AND v.version = e.default_version
                    WHERE e.name = col #>> '{extension,name}' AND v.trusted) THEN
        EXECUTE format('CREATE EXTENSION IF NOT EXISTS %I WITH SCHEMA %I',
                       col #>> '{extension,name}', col #>> '{extension,schema}');
    ELSIF to_regtype(wanted) IS NULL THEN
        PERFORM dionysus_sync.make_type(one.value)
        FROM jsonb_array_elements(col -> 'types') WITH ORDINALITY AS one (value, number) ORDER BY one.number;
    END IF;
    RETURN dionysus_sync.known_type(wanted);
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION dionysus_sync.counting_of(counting jsonb) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('(INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s %s)',
                  (counting ->> 'increment')::bigint, (counting ->> 'minimum')::bigint, (counting ->> 'maximum')::bigint,
                  (counting ->> 'start')::bigint, CASE WHEN (counting ->> 'cycle')::boolean THEN 'CYCLE' ELSE 'NO CYCLE' END)
    WHERE counting IS NOT NULL
$$;

-- Gives a column the type back that a definition says, unless that would change what a row has in it now.
CREATE OR REPLACE FUNCTION dionysus_sync.widen_column(target text, col jsonb) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := quote_ident(col ->> 'name');
    wanted text := dionysus_sync.type_of(col);
    present text;
    counted boolean;
    has_default boolean;
    loses boolean;
    fault text;
BEGIN
    SELECT format_type(a.atttypid, a.atttypmod), a.attidentity <> '' OR a.attgenerated <> '', a.atthasdef
    INTO present, counted, has_default
    FROM pg_attribute AS a WHERE a.attrelid = target::regclass AND a.attname = col ->> 'name' AND NOT a.attisdropped;
    IF wanted IS NULL THEN
        RETURN format('column %s stays %s: there is no type %s', name, present, left(col ->> 'type', 100));
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM %1$s WHERE %2$s::%3$s::%4$s::text IS DISTINCT FROM %2$s::text)',
                   target, name, wanted, present) INTO loses;
    IF loses THEN
        RETURN format('column %s stays %s: rows have values that are no %s', name, present, wanted);
    END IF;
    EXECUTE format('ALTER TABLE %1$s %4$s ALTER COLUMN %2$s TYPE %3$s USING %2$s::%3$s', target, name, wanted,
        CASE WHEN has_default AND NOT counted THEN format('ALTER COLUMN %s DROP DEFAULT,', name) END);
    IF NOT counted AND col ->> 'default' IS NOT NULL THEN
        fault := dionysus_sync.give_default(target, col ->> 'name', col ->> 'default');
    END IF;
    RETURN format('column %s has no default now: ', name) || fault;
EXCEPTION WHEN OTHERS THEN
    RETURN format('column %s stays %s: %s', name, present, SQLERRM);
END $$;

-- Whether something of this name stands in the schema of `target`.
CREATE OR REPLACE FUNCTION dionysus_sync.name_taken(target text, name text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM pg_class AS other JOIN pg_class AS ours ON ours.relnamespace = other.relnamespace
        WHERE ours.oid = target::regclass AND other.relname = name_taken.name)
$$;

-- A constraint that the table lacks. What rows that are there break holds for new ones all the same; and where the name is
-- taken (the table was renamed, and another one is made in its place), it gets another one.
CREATE OR REPLACE FUNCTION dionysus_sync.make_constraint(target text, name text, words text) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    fault text;
BEGIN
    IF EXISTS (SELECT FROM pg_constraint AS c WHERE c.conrelid = target::regclass
               AND (c.conname = name OR pg_get_constraintdef(c.oid) = words)) THEN
        RETURN NULL;
    END IF;
    IF words LIKE 'CHECK %' THEN
        RETURN dionysus_sync.make_check(target, name, words);
    ELSIF words !~ '^(PRIMARY KEY|UNIQUE|EXCLUDE|FOREIGN KEY) ' THEN
        RETURN format('constraint %s was left out: it is none that a table can have', name);
    END IF;
    BEGIN
        words := format('ALTER TABLE %s ADD %s %s', target,
                        CASE WHEN NOT dionysus_sync.name_taken(target, name) THEN format('CONSTRAINT %I', name) END,
                        dionysus_sync.one_statement(words));
    EXCEPTION WHEN OTHERS THEN
        RETURN format('constraint %s was left out: %s', name, SQLERRM);
    END;
    fault := dionysus_sync.attempt(format('constraint %s was left out', name), words);
    IF fault IS NOT NULL AND words !~ ' NOT VALID$'
        AND dionysus_sync.attempt('', words || ' NOT VALID') IS NULL THEN
        RETURN format('constraint %s holds for new rows only: some that are there break it', name);
    END IF;
    RETURN fault;
END $$;

-- It is looked at before it is computed for any row.
CREATE OR REPLACE FUNCTION dionysus_sync.make_check(target text, name text, words text) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    parts text[];
    fault text;
BEGIN
    parts := dionysus_sync.check_in(words);
    EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s%s', target, name, parts[1], coalesce(nullif(parts[2], ''), ' NOT VALID'));
    PERFORM dionysus_sync.check_tame(c.conbin::text) FROM pg_constraint AS c
    WHERE c.conrelid = target::regclass AND c.conname = name;
    IF parts[2] = '' THEN
        fault := dionysus_sync.attempt('', format('ALTER TABLE %s VALIDATE CONSTRAINT %I', target, name));
    END IF;
    RETURN CASE WHEN fault IS NOT NULL THEN format('constraint %s holds for new rows only: some that are there break it', name) END;
EXCEPTION WHEN OTHERS THEN
    RETURN format('constraint %s was left out: %s', name, SQLERRM);
END $$;

CREATE OR REPLACE FUNCTION dionysus_sync.make_index(target text, words text) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    parts text[] := regexp_match(words, '^(CREATE (?:UNIQUE )?INDEX) ("(?:[^"]|"")+"|[^\s"]+) (ON .*)$');
BEGIN
    words := dionysus_sync.index_on(target, words);
    IF dionysus_sync.name_taken(target, (parse_ident(parts[2]))[1]) THEN
        words := parts[1] || ' ' || parts[3];
    END IF;
    EXECUTE words;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN format('an index was left out: %s', SQLERRM);
END $$;

-- Who may use a table or schema, and whose it is. Nothing that somebody has is taken away.
CREATE OR REPLACE FUNCTION dionysus_sync.give_again(kind text, target text, noted jsonb) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part jsonb;
    given jsonb := '[]';
    owner oid;
    faults text[] := '{}';
BEGIN
    IF kind = 'TABLE' THEN
        SELECT dionysus_sync.grants_in(c.relacl, c.relowner), c.relowner INTO given, owner
        FROM pg_class AS c WHERE c.oid = target::regclass;
    ELSE
        SELECT dionysus_sync.grants_in(n.nspacl, n.nspowner), n.nspowner INTO given, owner
        FROM pg_namespace AS n WHERE n.oid = target::regnamespace;
    END IF;
    IF EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = noted ->> 'owner' AND r.oid <> owner
               AND pg_has_role(r.oid, 'USAGE')) THEN
        faults := faults || dionysus_sync.attempt(format('%s keeps its present owner', target),
                                                  format('ALTER %s %s OWNER TO %I', kind, target, noted ->> 'owner'));
    END IF;
    FOR part IN SELECT * FROM jsonb_array_elements(noted -> 'grants') LOOP
        CONTINUE WHEN given @> jsonb_build_array(part) OR part ->> 'privilege' !~ '^[A-Z]+$'
            OR NOT (part ->> 'role' = '' OR EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = part ->> 'role'));
        faults := faults || dionysus_sync.attempt(
            format('%s did not get %s on %s again', coalesce(nullif(part ->> 'role', ''), 'everybody'),
                   part ->> 'privilege', target),
            format('GRANT %s ON %s %s TO %s %s', part ->> 'privilege', kind, target,
                   CASE part ->> 'role' WHEN '' THEN 'PUBLIC' ELSE quote_ident(part ->> 'role') END,
                   CASE WHEN (part ->> 'grantable')::boolean THEN 'WITH GRANT OPTION' END));
    END LOOP;
    RETURN faults;
END $$;

-- What a definition has beyond `rebuild_table`, once the rows are back: it would fire at them, or refuse them.
CREATE OR REPLACE FUNCTION dionysus_sync.complete_table(target text, definition jsonb) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part jsonb;
    faults text[] := '{}';
BEGIN
    FOR part IN SELECT * FROM jsonb_array_elements(definition -> 'columns') LOOP
        faults := faults || dionysus_sync.require_column(target, part) || dionysus_sync.adorn_column(target, part);
    END LOOP;
    faults := faults || dionysus_sync.adorn_table(target, definition);
    FOR part IN SELECT * FROM jsonb_array_elements(definition -> 'triggers') LOOP
        faults := faults || dionysus_sync.make_trigger(target, part);
    END LOOP;
    FOR part IN SELECT * FROM jsonb_array_elements(definition -> 'policies') LOOP
        faults := faults || dionysus_sync.make_policy(target, part);
    END LOOP;
    IF (definition ->> 'row_security')::boolean
        AND NOT (SELECT c.relrowsecurity FROM pg_class AS c WHERE c.oid = target::regclass) THEN
        faults := faults || dionysus_sync.attempt(
            'row security is off', format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target));
    END IF;
    IF (definition ->> 'forced')::boolean
        AND NOT (SELECT c.relforcerowsecurity FROM pg_class AS c WHERE c.oid = target::regclass) THEN
        faults := faults || dionysus_sync.attempt(
            'row security is not forced', format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target));
    END IF;
    FOR part IN SELECT * FROM jsonb_array_elements(definition -> 'referenced_by') LOOP
        CONTINUE WHEN to_regclass(format('%I.%I', part ->> 'schema', part ->> 'table')) IS NULL;
        IF NOT starts_with(substring(part ->> 'definition' FROM '^FOREIGN KEY \([^()]*\) REFERENCES (.*)$'), target || '(')
            IS TRUE THEN
            faults := faults || format('constraint %s was left out: it is not about this table', part ->> 'name');
            CONTINUE;
        END IF;
        faults := faults || dionysus_sync.make_constraint(
            format('%I.%I', part ->> 'schema', part ->> 'table'), part ->> 'name', part ->> 'definition');
    END LOOP;
    RETURN array_remove(faults, NULL);
END $$;

-- That a column has to be filled, and by what, where it lost that.
CREATE OR REPLACE FUNCTION dionysus_sync.require_column(target text, col jsonb) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    present record;
    faults text[] := '{}';
BEGIN
    SELECT a.attnotnull, a.atthasdef, a.attidentity <> '' AS counted INTO present
    FROM pg_attribute AS a WHERE a.attrelid = target::regclass AND a.attname = col ->> 'name' AND NOT a.attisdropped;
    IF NOT FOUND OR col ->> 'name' = ANY (dionysus_sync.sync_columns()) THEN
        RETURN faults;
    END IF;
    IF col ->> 'default' IS NOT NULL AND col ->> 'generated' = '' AND NOT present.atthasdef AND NOT present.counted THEN
        faults := faults || (format('column %I has no default now: ', col ->> 'name')
                             || dionysus_sync.give_default(target, col ->> 'name', col ->> 'default'));
    END IF;
    IF (col ->> 'not_null')::boolean AND NOT present.attnotnull THEN
        faults := faults || dionysus_sync.attempt(format('column %I may be null now', col ->> 'name'),
            format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', target, col ->> 'name'));
    END IF;
    RETURN faults;
END $$;

-- Who may use a column by itself, and what is said of it.
CREATE OR REPLACE FUNCTION dionysus_sync.adorn_column(target text, col jsonb) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part jsonb;
    present record;
    faults text[] := '{}';
BEGIN
    SELECT dionysus_sync.grants_in(a.attacl, c.relowner) AS grants, col_description(c.oid, a.attnum) AS comment INTO present
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
    WHERE c.oid = target::regclass AND a.attname = col ->> 'name' AND NOT a.attisdropped;
    IF NOT FOUND THEN
        RETURN faults;
    END IF;
    IF present.comment IS NULL AND col ->> 'comment' IS NOT NULL THEN
        faults := faults || dionysus_sync.attempt(format('the comment on column %I was left out', col ->> 'name'),
            format('COMMENT ON COLUMN %s.%I IS %L', target, col ->> 'name', col ->> 'comment'));
    END IF;
    FOR part IN SELECT * FROM jsonb_array_elements(col -> 'grants') LOOP
        CONTINUE WHEN present.grants @> jsonb_build_array(part) OR part ->> 'privilege' !~ '^[A-Z]+$'
            OR NOT (part ->> 'role' = '' OR EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = part ->> 'role'));
        faults := faults || dionysus_sync.attempt(
            format('%s did not get %s on column %I again', coalesce(nullif(part ->> 'role', ''), 'everybody'),
                   part ->> 'privilege', col ->> 'name'),
            format('GRANT %s (%I) ON TABLE %s TO %s %s', part ->> 'privilege', col ->> 'name', target,
                   CASE part ->> 'role' WHEN '' THEN 'PUBLIC' ELSE quote_ident(part ->> 'role') END,
                   CASE WHEN (part ->> 'grantable')::boolean THEN 'WITH GRANT OPTION' END));
    END LOOP;
    RETURN faults;
END $$;

-- What is said of the table, what of its rows goes to replicas, and which views of it there were: those stay gone.
CREATE OR REPLACE FUNCTION dionysus_sync.adorn_table(target text, definition jsonb) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    identity text := definition #>> '{replica_identity,kind}';
    faults text[] := '{}';
BEGIN
    IF definition ->> 'comment' IS NOT NULL AND obj_description(target::regclass, 'pg_class') IS NULL THEN
        faults := faults || dionysus_sync.attempt('the comment on the table was left out',
            format('COMMENT ON TABLE %s IS %L', target, definition ->> 'comment'));
    END IF;
    IF identity IN ('f', 'n', 'i') AND (SELECT c.relreplident = 'd' FROM pg_class AS c WHERE c.oid = target::regclass) THEN
        faults := faults || dionysus_sync.attempt('the replica identity is the default one', format(
            'ALTER TABLE %s REPLICA IDENTITY %s', target, CASE identity WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING'
                ELSE format('USING INDEX %I', (SELECT one[cardinality(one)] FROM parse_ident(
                    definition #>> '{replica_identity,index}') AS one)) END));
    END IF;
    RETURN faults || ARRAY(
        SELECT format('view %s was not made again: make it yourself', name)
        FROM jsonb_array_elements_text(definition -> 'views') AS name WHERE to_regclass(name) IS NULL);
END $$;

-- One of the user's own triggers, of a function that is there.
CREATE OR REPLACE FUNCTION dionysus_sync.make_trigger(target text, noted jsonb) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := noted ->> 'name';
    words text := noted ->> 'definition';
    -- The first words up to the table: the name, and what it fires at.
    head text := '^CREATE (?:CONSTRAINT )?TRIGGER (?:"(?:[^"]|"")+"|[^\s"]+) (?:BEFORE|AFTER) '
        '(?:(?:INSERT|DELETE|TRUNCATE|UPDATE(?: OF (?:(?:"(?:[^"]|"")+"|[^\s",]+)(?:, )?)+)?)(?: OR )?)+ ON (.*)$';
BEGIN
    IF EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = target::regclass AND t.tgname = name) THEN
        RETURN NULL;
    END IF;
    IF NOT starts_with(substring(words FROM head), target || ' ') IS TRUE
        OR dionysus_sync.bare_words(words) !~ ' EXECUTE (FUNCTION|PROCEDURE) ' THEN
        RETURN format('trigger %s was left out: it is not about this table', name);
    END IF;
    EXECUTE words;
    PERFORM dionysus_sync.check_tame(t.tgqual::text) FROM pg_trigger AS t
    WHERE t.tgrelid = target::regclass AND t.tgname = name;
    IF noted ->> 'enabled' IN ('D', 'A', 'R') THEN
        EXECUTE format('ALTER TABLE %s %s TRIGGER %I', target, CASE noted ->> 'enabled'
            WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE REPLICA' END, name);
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN format('trigger %s was left out: %s', name, SQLERRM);
END $$;

CREATE OR REPLACE FUNCTION dionysus_sync.make_policy(target text, noted jsonb) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := noted ->> 'name';
BEGIN
    IF EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = target::regclass AND p.polname = name) THEN
        RETURN NULL;
    END IF;
    EXECUTE format('CREATE POLICY %I ON %s AS %s FOR %s TO %s %s %s', name, target,
        CASE WHEN (noted ->> 'permissive')::boolean THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
        CASE noted ->> 'command' WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
            ELSE 'ALL' END,
        (SELECT string_agg(CASE role WHEN '' THEN 'PUBLIC' ELSE quote_ident(role) END, ', ')
         FROM jsonb_array_elements_text(noted -> 'roles') AS role),
        'USING (' || dionysus_sync.one_statement(noted ->> 'using') || ')',
        'WITH CHECK (' || dionysus_sync.one_statement(noted ->> 'check') || ')');
    PERFORM dionysus_sync.check_tame(p.polqual::text, p.polwithcheck::text) FROM pg_policy AS p
    WHERE p.polrelid = target::regclass AND p.polname = name;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN format('policy %s was left out: %s', name, SQLERRM);
END $$;

-- The hash of a row's image without the columns of which nothing was captured.
CREATE OR REPLACE FUNCTION dionysus_sync.captured_hash(image jsonb, extra text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT dionysus_sync.content_hash(jsonb_object_agg(part.key, part.value)) FROM jsonb_each(image) AS part
    WHERE coalesce(extra::jsonb ? part.key, false)
       OR part.key IN ('id', 'content', 'memory_type', 'importance', 'source_project', 'session_id', 'tags', 'created_at',
                       'updated_at')
$$;

-- As in 0003; but a row of the page says by itself what its number is, whether it is new to the remote store, and whether it
-- replaces one that is there, which then keeps what the page says nothing of. With `overwrite`, every row of the page
-- replaces one that is not newer. The page says afterwards which rows were written: somebody else's can have come between.
CREATE OR REPLACE FUNCTION dionysus_sync.write_restored(target regclass, overwrite boolean) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC' SET extra_float_digits = 1 SET datestyle = 'ISO' SET intervalstyle = 'iso_8601'
-- Each row is looked up by its key, however little the planner knows of the page: see `verify_restored`.
SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    target_name text := target;
    names text;
    chosen text;
    assignments text;
    replacements text;
    written uuid[];
    replaced uuid[];
BEGIN
    SELECT string_agg(quote_ident(col.attname), ', ' ORDER BY col.attnum),
           string_agg(dionysus_sync.restored_value(col.attrelid, col.attname, col.attidentity <> '',
                                                   pg_get_expr(d.adbin, d.adrelid)), ', ' ORDER BY col.attnum),
           string_agg(format('%1$I = EXCLUDED.%1$I', col.attname), ', ' ORDER BY col.attnum)
               FILTER (WHERE col.attidentity <> 'a'),
           string_agg(format('%1$I = made.%1$I', col.attname), ', ' ORDER BY col.attnum)
               FILTER (WHERE col.attidentity <> 'a')
    INTO names, chosen, assignments, replacements
    FROM pg_catalog.pg_attribute col
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = col.attrelid AND d.adnum = col.attnum
    WHERE col.attrelid = target AND col.attnum > 0 AND NOT col.attisdropped AND col.attgenerated = '';
    EXECUTE format(
        'CREATE TEMPORARY VIEW dionysus_made (%2$s, dionysus_replaces) AS '
        'SELECT %3$s, page.overwrites IS NOT NULL FROM pg_temp.dionysus_restore AS page, LATERAL (SELECT '
        '        coalesce((SELECT to_jsonb(standing.*) FROM %1$s AS standing '
        '                  WHERE page.overwrites IS NOT NULL AND standing.id = page.id LIMIT 1), ''{}'') '
        '        || jsonb_build_object('
        '        ''id'', page.id, ''content'', page.content, ''memory_type'', page.memory_type, '
        '        ''importance'', page.importance, ''source_project'', page.source_project, '
        '        ''session_id'', page.session_id, ''tags'', page.tags, '
        '        ''created_at'', page.created_at, ''updated_at'', page.updated_at) '
        '        || coalesce(page.extra::jsonb, ''{}'') || jsonb_build_object('
        '        ''sync_version'', page.number, ''synced_version'', page.confirmed, ''remote_id'', page.id, '
        '        ''synced_at'', clock_timestamp(), '
        '        ''sync_status'', CASE WHEN page.is_new THEN ''pending'' ELSE ''synced'' END) AS image'
        '    ) AS imaged, LATERAL jsonb_populate_record(NULL::%1$s, imaged.image) AS made',
        target, names, chosen);
    PERFORM set_config('search_path', (
        SELECT quote_ident(place.nspname)
        FROM pg_class JOIN pg_namespace AS place ON place.oid = relnamespace WHERE pg_class.oid = target), true);
    EXECUTE pg_catalog.format(
        'WITH done AS (INSERT INTO %1$s AS standing (%2$s) OVERRIDING SYSTEM VALUE '
        'SELECT %2$s FROM pg_temp.dionysus_made WHERE NOT dionysus_replaces ON CONFLICT (id) DO %3$s RETURNING standing.id) '
        'SELECT pg_catalog.array_agg(id) FROM done', target_name, names,
        CASE WHEN overwrite
            THEN pg_catalog.format('UPDATE SET %s WHERE standing.sync_version <= EXCLUDED.sync_version', assignments)
            ELSE 'NOTHING' END) INTO written;
    EXECUTE pg_catalog.format(
        'WITH done AS (UPDATE %s AS standing SET %s FROM pg_temp.dionysus_made AS made '
        'WHERE made.dionysus_replaces AND standing.id = made.id RETURNING standing.id) '
        'SELECT pg_catalog.array_agg(id) FROM done', target_name, replacements) INTO replaced;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    DROP VIEW pg_temp.dionysus_made;
    -- As a value of the moment the ids can be hashed, of which the planner would make nothing in a statement that it keeps.
    EXECUTE 'UPDATE pg_temp.dionysus_restore SET written = true WHERE id = ANY ($1)' USING written || replaced;
    PERFORM dionysus_sync.count_on(target);
    RETURN coalesce(cardinality(written), 0) + coalesce(cardinality(replaced), 0);
END $$;

-- As in 0004; and a row that a recovery writes once more is what it is to become, whatever a trigger of the user's own (one
-- that sets updated_at, say) has made of it.
CREATE OR REPLACE FUNCTION dionysus_sync.bump_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    origin text := CASE WHEN dionysus_sync.by_engine() THEN current_setting('dionysus.origin', true) END;
    generated text := current_setting('dionysus.generated', true);
    columns text := coalesce(current_setting('dionysus.columns', true), '');
    tried record;
    wanted jsonb;
BEGIN
    IF origin = 'restore' THEN
        IF current_setting('dionysus.straighten', true) = 'on' THEN
            EXECUTE 'SELECT image FROM pg_temp.dionysus_wanted WHERE id = $1' INTO wanted USING NEW.id;
            RETURN jsonb_populate_record(NEW, coalesce(wanted, '{}'));
        END IF;
        RETURN NEW;
    END IF;
    IF columns = '' THEN
        BEGIN
            tried := NEW;
            tried.sync_status := OLD.sync_status;
            tried.synced_at := OLD.synced_at;
            tried.sync_version := OLD.sync_version;
            tried.remote_id := OLD.remote_id;
            tried.synced_version := OLD.synced_version;
            tried.sync_status := 'pending';
            tried.updated_at := clock_timestamp();
            columns := 'known';
        EXCEPTION WHEN OTHERS THEN
            columns := 'changed';
        END;
        PERFORM set_config('dionysus.columns', columns, true);
    END IF;
    IF columns = 'known' AND origin = 'engine' THEN
        OLD.sync_status := NEW.sync_status;
        OLD.synced_at := NEW.synced_at;
        OLD.sync_version := NEW.sync_version;
        OLD.remote_id := NEW.remote_id;
        OLD.synced_version := NEW.synced_version;
        RETURN OLD;
    END IF;
    IF columns = 'known' THEN
        NEW.sync_status := OLD.sync_status;
        NEW.synced_at := OLD.synced_at;
        NEW.sync_version := OLD.sync_version;
        NEW.remote_id := OLD.remote_id;
        NEW.synced_version := OLD.synced_version;
    ELSE
        BEGIN
            EXECUTE 'SELECT ($1).sync_status::text, ($1).synced_at::text, ($1).sync_version::text, ($1).remote_id::text, '
                '($1).synced_version::text' INTO tried USING CASE WHEN origin = 'engine' THEN NEW ELSE OLD END;
            IF origin = 'engine' THEN
                OLD.sync_status := tried.sync_status;
                OLD.synced_at := tried.synced_at;
                OLD.sync_version := tried.sync_version;
                OLD.remote_id := tried.remote_id;
                OLD.synced_version := tried.synced_version;
                RETURN OLD;
            END IF;
            NEW.sync_status := tried.sync_status;
            NEW.synced_at := tried.synced_at;
            NEW.sync_version := tried.sync_version;
            NEW.remote_id := tried.remote_id;
            NEW.synced_version := tried.synced_version;
        EXCEPTION WHEN OTHERS THEN
            columns := 'gone';
        END;
    END IF;
    IF columns = 'gone' AND origin = 'engine' OR NOT NEW *<> OLD THEN
        RETURN NEW;
    END IF;
    IF generated <> '{}' THEN
        BEGIN
            generated := (SELECT coalesce(array_agg(attname::text), '{}')::text
                          FROM pg_attribute WHERE attrelid = TG_RELID AND attgenerated = 's');
            IF (to_jsonb(NEW) - generated::text[])::text = (to_jsonb(OLD) - generated::text[])::text THEN
                RETURN NEW;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            NULL; -- a row that cannot be made JSON counts as changed
        END;
    END IF;
    IF columns = 'known' THEN
        NEW.sync_version := coalesce(OLD.sync_version, 1) + 1;
        NEW.sync_status := 'pending';
        NEW.updated_at := clock_timestamp();
        RETURN NEW;
    END IF;
    BEGIN
        EXECUTE 'SELECT (coalesce(($1).sync_version, 1) + 1)::text AS version' INTO tried USING OLD;
        NEW.sync_version := tried.version;
        NEW.sync_status := 'pending';
        NEW.updated_at := clock_timestamp();
    EXCEPTION WHEN OTHERS THEN
        NULL; -- the capture sees what is changed of the user's own columns all the same
    END;
    RETURN NEW;
END $$;

-- Triggers need no such right to run: it was checked when they were made.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA dionysus_sync FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA dionysus_sync FROM PUBLIC;
