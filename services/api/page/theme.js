// Light or dark: the system's choice until the reader makes one, which this browser keeps.

const THEMES = ["system", "light", "dark"];

function storedTheme() {
  try {
    const theme = localStorage.getItem("stepcast-theme");
    return THEMES.includes(theme) ? theme : "system";
  } catch {
    return "system"; // Storage may be forbidden; then the choice lasts as long as the page.
  }
}

function applyTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const words = theme === "system" ? "as the system" : theme;
  byId("theme-button").setAttribute("aria-label", `Colours: ${words}`);
  byId("theme-button").title = `Colours: ${words}`;
}

function startTheme() {
  let theme = storedTheme();
  applyTheme(theme);
  byId("theme-button").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    applyTheme(theme);
    try {
      localStorage.setItem("stepcast-theme", theme);
    } catch {
      // As above.
    }
  });
}
