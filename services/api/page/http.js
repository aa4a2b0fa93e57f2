// Requests to the server that sent this page, and its problems (RFC 9457) as one error type.

class Problem extends Error {
  /** `status` is 0 when the server could not be reached at all. */
  constructor(status, title, detail, errors) {
    super([title, detail].filter(Boolean).join(": "));
    this.status = status;
    this.errors = errors;
  }
}

async function problemFrom(response) {
  const kind = response.headers.get("Content-Type") ?? "";
  let body = null;
  if (kind.includes("json")) body = await response.json().catch(() => null);
  const wait = response.headers.get("Retry-After");
  const detail = [body?.detail, wait && /^\d+$/.test(wait) ? `try again in ${wait} s` : ""].filter(Boolean).join("; ");
  const errors = Array.isArray(body?.errors) ? body.errors : [];
  return new Problem(response.status, body?.title ?? `The server answered ${response.status}`, detail, errors);
}

/** Resolves to the decoded answer (null for 204), rejects with a `Problem`. */
async function request(method, path, { json, body, contentType } = {}) {
  const headers = { Accept: "application/json, application/problem+json" };
  if (json !== undefined) headers["Content-Type"] = "application/json";
  else if (contentType) headers["Content-Type"] = contentType;
  let response;
  try {
    response = await fetch(path, { method, headers, body: json === undefined ? body : JSON.stringify(json) });
  } catch {
    throw new Problem(0, "The server cannot be reached", "", []);
  }
  if (!response.ok) throw await problemFrom(response);
  if (response.status === 204) return null;
  return response.json().catch(() => {
    throw new Problem(response.status, "The server's answer is not JSON", "", []);
  });
}

const jobPath = (id, rest = "") => `/generation/jobs/${encodeURIComponent(id)}${rest}`;

const server = {
  submit: (job) => request("POST", "/generation/queue-generation", { json: job }),
  upload: (file) => request("POST", "/generation/inputs", { body: file, contentType: file.type || "application/octet-stream" }),
  jobs: (query) => request("GET", `/generation/jobs?${new URLSearchParams(query)}`),
  active: () => request("GET", "/generation/jobs/active"),
  job: (id) => request("GET", jobPath(id)),
  cancel: (id) => request("POST", jobPath(id, "/cancel")),
  cancelBatch: (id) => request("POST", `/generation/batch/${encodeURIComponent(id)}/cancel`),
  retryBatch: (id) => request("POST", `/generation/batch/${encodeURIComponent(id)}/retry`),
  retry: (id) => request("POST", jobPath(id, "/retry")),
  setPriority: (id, priority) => request("PATCH", jobPath(id), { json: { priority } }),
  remove: (id) => request("DELETE", jobPath(id)),
  backends: () => request("GET", "/generation/backends"),
  statistics: (window) => request("GET", `/generation/stats?${new URLSearchParams({ window })}`),
  // `pause`, `drain` or `resume`.
  tellBackend: (id, what) => request("POST", `/generation/backends/${encodeURIComponent(id)}/${what}`),
};
