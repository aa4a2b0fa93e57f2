// The form: fields to a job body, and the server's objections back to their fields.

const pointerOf = (control) => control.dataset.pointer ?? `/${control.name}`;

class SubmitForm {
  #form = byId("submit-form");
  #queued;
  #upload = null; // The last file sent and the id it got, so that a second job sends nothing.

  /** `queued` takes the answer to a submit and the body that was sent. */
  constructor(queued) {
    this.#queued = queued;
    for (const control of this.#controls()) this.#addErrorSlot(control);
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    this.#form.addEventListener("input", (event) => this.#showError(event.target, ""));
    if (/Mac|iPhone|iPad/.test(navigator.platform)) setText(this.#form.querySelector("kbd"), "⌘ ↵");
    byId("hires").addEventListener("change", () => this.#hiresChanged());
    byId("init_image").addEventListener("change", () => this.#fileChanged());
    byId("init-clear").addEventListener("click", () => {
      byId("init_image").value = "";
      this.#fileChanged();
      byId("init_image").focus();
    });
    // A reload may bring back ticked boxes and chosen files.
    this.#hiresChanged();
    this.#fileChanged();
  }

  /** Puts the settings of an earlier job into the form. */
  fill(params) {
    for (const control of this.#controls()) {
      if (control.type === "file") continue;
      const value = pointerOf(control).split("/").slice(1).reduce((at, key) => at?.[key], params);
      if (value != null) control.value = String(value);
      else control.value = control.tagName === "SELECT" ? "normal" : control.defaultValue;
    }
    byId("hires").checked = params.sdnext?.enable_hr === true;
    byId("hires").closest("details").open ||= byId("hires").checked;
    this.#hiresChanged();
    this.#clearErrors();
    const prompt = byId("prompt");
    prompt.focus();
    prompt.setSelectionRange(prompt.value.length, prompt.value.length);
    notify("The settings are in the form.");
  }

  #controls() {
    return [...this.#form.querySelectorAll("input, textarea, select")].filter((node) => node.name || node.type === "file");
  }

  #addErrorSlot(control) {
    const name = control.name || control.id;
    const slot = element("p", { className: "field-error", id: `error-${name}`, hidden: true });
    slot.dataset.testid = `error-${name}`;
    control.closest(".field").append(slot);
    control.setAttribute("aria-describedby", slot.id);
    control.dataset.testid ??= name;
  }

  async #submit() {
    const button = byId("submit");
    if (button.disabled) return;
    this.#clearErrors();
    const body = this.#body();
    if (body === null) {
      this.#focusFirstError();
      return;
    }
    button.disabled = true;
    try {
      const file = byId("init_image").files[0];
      if (file) body.init_images = [`input:${await this.#inputIdOf(file)}`];
      this.#queued(await server.submit(body), body);
      announce("Queued");
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      this.#showProblem(problem);
    } finally {
      button.disabled = false;
    }
  }

  /** The body as typed, or null where a field does not hold what its kind can say. */
  #body() {
    const body = {};
    let sound = true;
    for (const control of this.#controls()) {
      if (control.type === "file" || control.matches(":disabled")) continue;
      if (control.validity.badInput) {
        this.#showError(control, "must be a number");
        sound = false;
      }
      const text = control.value.trim();
      if (text === "" && control.id !== "prompt") continue;
      const keys = pointerOf(control).split("/").slice(1);
      const last = keys.pop();
      const target = keys.reduce((at, key) => (at[key] ??= {}), body);
      target[last] = control.type === "number" ? Number(text) : text;
    }
    if (byId("hires").checked) Object.assign((body.sdnext ??= {}), { enable_hr: true, hr_force: true });
    return sound ? body : null;
  }

  async #inputIdOf(file) {
    if (this.#upload?.file === file) return this.#upload.id;
    try {
      const { input_id: id } = await server.upload(file);
      this.#upload = { file, id };
      return id;
    } catch (problem) {
      this.#showError(byId("init_image"), problem.message);
      throw new Problem(problem.status, "The start image was not accepted", "", []);
    }
  }

  #showProblem(problem) {
    const loose = [];
    for (const error of problem.errors) {
      const pointer = String(error.pointer ?? "").replace(/^#/, "");
      const detail = String(error.detail ?? error.message ?? "is not valid");
      const control = this.#controlAt(pointer);
      if (control) this.#showError(control, detail);
      else loose.push(pointer ? `${pointer.slice(1)}: ${detail}` : detail);
    }
    if (problem.errors.length === 0 || loose.length > 0) loose.unshift(problem.message);
    setOptional(byId("form-error"), loose.join("\n"));
    // An upload that the server no longer keeps is sent anew the next time.
    if (problem.errors.some((error) => String(error.pointer).includes("/init_images"))) this.#upload = null;
    this.#focusFirstError();
  }

  // `/init_images/0` belongs to the field of `/init_images`.
  #controlAt(pointer) {
    return this.#controls().find((control) => pointer === pointerOf(control) || pointer.startsWith(`${pointerOf(control)}/`));
  }

  #showError(control, text) {
    const slot = byId(`error-${control.name || control.id}`);
    if (!slot) return;
    setOptional(slot, capitalise(text));
    if (text === "") control.removeAttribute("aria-invalid");
    else control.setAttribute("aria-invalid", "true");
  }

  #clearErrors() {
    for (const control of this.#controls()) this.#showError(control, "");
    setOptional(byId("form-error"), "");
  }

  #focusFirstError() {
    const control = this.#form.querySelector("[aria-invalid]");
    if (!control) return;
    const details = control.closest("details");
    if (details) details.open = true;
    control.focus();
  }

  #hiresChanged() {
    byId("hires-fields").disabled = !byId("hires").checked;
    setText(byId("hires-note"), byId("hires").checked ? "on" : "");
  }

  #fileChanged() {
    const file = byId("init_image").files[0];
    const preview = byId("init-preview");
    if (preview.src) URL.revokeObjectURL(preview.src);
    byId("init-fields").disabled = !file;
    setHidden(preview, !file);
    setText(byId("init-note"), file ? file.name : "");
    if (file) preview.src = URL.createObjectURL(file);
    else preview.removeAttribute("src");
    this.#upload = null;
    this.#showError(byId("init_image"), "");
  }
}
