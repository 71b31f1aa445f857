// Writes lookalike.d.ts from a running service: node types.mjs http://localhost:8000
import { writeFile } from "node:fs/promises";
import openapiTS, { astToString } from "openapi-typescript";
import ts from "typescript";

const BLOB = ts.factory.createTypeReferenceNode("Blob");
const nodes = await openapiTS(new URL("openapi.json", `${process.argv[2]}/`), {
  transform: (schema) => (schema.format === "binary" ? BLOB : undefined), // a File is a Blob
});
await writeFile("lookalike.d.ts", astToString(nodes));
