// Windows over the page. The browser's own dialog element keeps the keyboard inside, closes
// on Escape and gives the keyboard's place back.

/** Lets a click beside the window close it. */
function closeBeside(dialog, close) {
  // Where the press began counts: text that is selected to beyond the edge closes nothing.
  let pressedBeside = false;
  dialog.addEventListener("pointerdown", (event) => { pressedBeside = event.target === dialog; });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog && pressedBeside) close();
  });
}

/** Asks before something that cannot be taken back; resolves to whether to do it. */
function confirmFirst({ title, text, act, keep = "Go back" }) {
  const dialog = byId("confirm");
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  setText(byId("confirm-act"), act);
  setText(byId("confirm-keep"), keep);
  dialog.returnValue = "";
  dialog.showModal();
  // The harmless answer has the keyboard.
  byId("confirm-keep").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "act"), { once: true });
  });
}

function startDialogs() {
  const dialog = byId("confirm");
  byId("confirm-act").addEventListener("click", () => dialog.close("act"));
  byId("confirm-keep").addEventListener("click", () => dialog.close(""));
  closeBeside(dialog, () => dialog.close(""));
}

// Images at full size, one after another.
class Lightbox {
  #dialog = byId("lightbox");
  #image = byId("lightbox-image");
  #pictures = [];
  #at = 0;

  constructor() {
    byId("lightbox-close").addEventListener("click", () => this.#dialog.close());
    byId("lightbox-previous").addEventListener("click", () => this.#step(-1));
    byId("lightbox-next").addEventListener("click", () => this.#step(1));
    byId("lightbox-zoom").addEventListener("click", () => this.#zoom());
    this.#image.addEventListener("click", () => this.#zoom());
    closeBeside(byId("lightbox-stage"), () => this.#dialog.close());
    this.#dialog.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (move && !this.#zoomed) this.#step(move);
    });
  }

  /** Opens on one of `pictures`: `url`, `name` to save it under, `alt`, `note`. */
  open(pictures, index) {
    this.#pictures = pictures;
    this.#at = index;
    this.#show();
    this.#dialog.showModal();
  }

  get #zoomed() {
    return this.#dialog.classList.contains("zoomed");
  }

  #step(by) {
    const to = this.#at + by;
    if (to < 0 || to >= this.#pictures.length) return;
    this.#at = to;
    this.#show();
  }

  #zoom() {
    this.#dialog.classList.toggle("zoomed");
    this.#tellZoom();
  }

  #tellZoom() {
    byId("lightbox-zoom").setAttribute("aria-pressed", String(this.#zoomed));
  }

  #show() {
    const picture = this.#pictures[this.#at];
    this.#dialog.classList.remove("zoomed");
    this.#tellZoom();
    this.#image.src = picture.url;
    this.#image.alt = picture.alt;
    this.#image.width = picture.width;
    this.#image.height = picture.height;
    const several = this.#pictures.length > 1;
    setText(byId("lightbox-note"), inLine([several && `${this.#at + 1} of ${this.#pictures.length}`, picture.note]));
    for (const [id, off] of [["lightbox-previous", this.#at === 0], ["lightbox-next", this.#at === this.#pictures.length - 1]]) {
      setHidden(byId(id), !several);
      byId(id).disabled = off;
    }
    const save = byId("lightbox-save");
    save.href = picture.url;
    save.download = picture.name;
    byId("lightbox-open").href = picture.url;
  }
}

const IMAGE_ENDINGS = { "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" };

/** The images of a job as the lightbox takes them; those of a failed attempt too. */
function picturesOf(job) {
  const params = job.params ?? {};
  const outputs = Array.isArray(job.outputs) ? job.outputs : [];
  const listed = job.images.length > 0 ? job.images : outputs.map((output) => output?.url);
  const pictures = [];
  listed.forEach((address, index) => {
    const url = typeof address === "string" ? safeUrl(address) : null;
    if (url === null) return;
    const output = outputs[index] ?? {};
    const ending = IMAGE_ENDINGS[output.content_type] ?? "png";
    const width = output.width ?? params.width ?? 512;
    const height = output.height ?? params.height ?? 512;
    const seed = isNumber(output.seed) ? output.seed : null;
    pictures.push({
      url, width, height, seed,
      partial: output.partial === true,
      name: `${job.job_id}-${index}.${ending}`,
      alt: `Image ${index + 1} of ${listed.length}`,
      note: inLine([`${width} × ${height}`, seed !== null && `seed ${seed}`]),
    });
  });
  return pictures;
}
