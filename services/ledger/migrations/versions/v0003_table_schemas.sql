-- The schema of each published table. A revision that changes a published table changes its row here in the same
-- transaction, so that the change stream announces the schema before the first change of the new form.
CREATE TABLE palaver.table_schemas (
    name text PRIMARY KEY,
    schema integer NOT NULL CHECK (schema > 0)
);
ALTER PUBLICATION palaver ADD TABLE palaver.table_schemas;
INSERT INTO palaver.table_schemas (name, schema) VALUES ('sites', 1), ('threads', 1), ('comments', 1);
