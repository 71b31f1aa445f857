// A typed client: what it may send, and what comes back, is what /openapi.json says.
import createClient from "openapi-fetch";
import type { components, paths } from "./lookalike";

type Fields = components["schemas"]["Body_search"];
type Asked = "file" | "text" | "id" | "vector";
/** Whatever the call takes, with at least one thing to search for. */
type Search = Fields & { [One in Asked]: Required<Pick<Fields, One>> }[Asked];
export type Match = components["schemas"]["MatchOut"];

/** Calls of the service at an address, with a key of scope read. */
export function connect(service: string, key: string) {
  const calls = createClient<paths>({ baseUrl: service, headers: { "X-API-Key": key } });

  /** The pictures most like a file, best first: `search({ file })`, `search({ file, k: 5 })`. */
  async function search(fields: Search): Promise<Match[]> {
    const { data, error } = await calls.POST("/search", { body: fields, bodySerializer: asForm });
    if (error) throw new Error(error.detail);
    return data.matches;
  }

  /** A link of an answer as a whole address, for `<img src>`. */
  const address = (link: string) => new URL(link, service).href;

  return { calls, search, address };
}

function asForm(fields: Fields): FormData {
  const form = new FormData();
  for (const [name, values] of Object.entries(fields)) {
    for (const value of Array.isArray(values) ? values : [values]) {
      form.append(name, value instanceof Blob ? value : String(value));
    }
  }
  return form;
}
