// Programs to copy, written for the address this page came from.

function exampleTexts(origin) {
  const socket = `${origin.replace(/^http/, "ws")}/ws/progress`;
  return [
    ["curl", `curl -X POST ${origin}/generation/queue-generation \\
  -H "Content-Type: application/json" \\
  -d '{"prompt":"a beautiful landscape","steps":10}'`],
    ["JavaScript", `// In a browser, or in Node 22 and later.
const ws = new WebSocket("${socket}");

ws.onopen = () => {
  ws.send(JSON.stringify({ type: "subscribe", job_ids: null }));
};

ws.onmessage = (event) => {
  const { type, data } = JSON.parse(event.data);
  if (type === "progress_update") {
    console.log(data.job_id, Math.round(data.progress * 100) + " %");
  }
  if (type === "generation_complete") {
    console.log(data.job_id, data.status, data.images);
  }
};`],
    ["Python", `import asyncio, json, urllib.request
import websockets  # pip install websockets

async def main():
    async with websockets.connect("${socket}") as ws:
        await ws.send(json.dumps({"type": "subscribe", "job_ids": None}))
        request = urllib.request.Request(
            "${origin}/generation/queue-generation",
            data=json.dumps({"prompt": "a beautiful landscape", "steps": 10}).encode(),
            headers={"Content-Type": "application/json"},
        )
        job_id = json.load(urllib.request.urlopen(request))["job_id"]
        async for text in ws:
            message = json.loads(text)
            if message["data"].get("job_id") != job_id:
                continue
            if message["type"] == "progress_update":
                print(f"{message['data']['progress']:.0%}")
            if message["type"] == "generation_complete":
                print(message["data"]["status"], message["data"]["images"])
                break

asyncio.run(main())`],
  ];
}

/** Tabs by the usual keyboard pattern: one stop for Tab, arrows move between them. */
function showExamples() {
  const tabs = [];
  const panels = [];
  const select = (index, focus) => {
    tabs.forEach((tab, at) => {
      tab.setAttribute("aria-selected", String(at === index));
      tab.tabIndex = at === index ? 0 : -1;
      panels[at].hidden = at !== index;
    });
    if (focus) tabs[index].focus();
  };
  exampleTexts(location.origin).forEach(([name, text], index) => {
    const key = name.toLowerCase();
    const tab = element("button", { type: "button", role: "tab", id: `tab-${key}`, textContent: name });
    tab.setAttribute("aria-controls", `example-${key}`);
    tab.addEventListener("click", () => select(index, false));
    tab.addEventListener("keydown", (event) => {
      const move = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      select((move + tabs.length) % tabs.length, true);
    });
    const code = element("pre", { textContent: text, tabIndex: 0 });
    code.dataset.testid = `example-${key}`;
    const panel = element("div", { role: "tabpanel", id: `example-${key}`, className: "example" }, code);
    panel.setAttribute("aria-labelledby", tab.id);
    tabs.push(tab);
    panels.push(panel);
  });
  const copy = byId("example-copy");
  copy.addEventListener("click", () => copyFrom(copy, panels.find((panel) => !panel.hidden).textContent));
  byId("example-tabs").append(...tabs);
  byId("example-panels").append(...panels);
  select(0, false);
}
