// Writes lookalike.d.ts from a running service: node types.mjs http://localhost:8000
import { writeFile } from "node:fs/promises";
import openapiTS, { astToString } from "openapi-typescript";
import ts from "typescript";

const BLOB = ts.factory.createTypeReferenceNode("Blob"); // a File is a Blob
const BLOBS = ts.factory.createUnionTypeNode([BLOB, ts.factory.createArrayTypeNode(BLOB)]);
const nodes = await openapiTS(new URL("openapi.json", `${process.argv[2]}/`), {
  transform(schema) {
    if (schema.items?.format === "binary") return BLOBS; // one file, or several
    return schema.format === "binary" ? BLOB : undefined;
  },
});
await writeFile("lookalike.d.ts", astToString(nodes));
